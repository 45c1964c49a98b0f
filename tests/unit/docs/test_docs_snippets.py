"""Every code block of the documents is what a reader can use: commands parse, keys exist, requests are the service's, Python runs."""

from __future__ import annotations

import pytest

from tests.unit.docs.snippet_commands import check_bash, check_console
from tests.unit.docs.snippets import ROOT, WrongSnippetError, check_json, check_python, check_yaml, snippets_of, unknown_keys
from tests.unit.index.index_made import Made

PAGES = [ROOT / "README.md", ROOT / "configs" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = [snippet for page in PAGES for snippet in snippets_of(page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8"))]
NAMES_OTHERS_KEYS = {"configs/README.md"}
"""Pages on which words in code style are also keys of other systems."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as `make demo` leaves it, with a small index in place of the demo's."""
    place = tmp_path_factory.mktemp("demo")
    Made(f"file:{place}/demo/workspace", name="landsat-tile2vec").build(range(100))
    return place


@pytest.fixture(scope="module")
def checks(folder):
    """What is asked of a block, by its language; `text` says that it is nothing to be used."""
    return {
        "bash": check_bash,
        "console": check_console,
        "json": check_json,
        "python": lambda snippet: check_python(snippet.text, folder),
        "text": lambda _: None,
        "yaml": check_yaml,
    }


def test_there_are_blocks_of_every_language(checks):
    assert {snippet.language for snippet in SNIPPETS} == checks.keys()
    assert len(SNIPPETS) > 15


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_every_block_is_right(snippet, checks):
    assert snippet.language in checks, f"{snippet}: begin the block with ```LANGUAGE, one of {', '.join(checks)}"
    try:
        checks[snippet.language](snippet)
    except WrongSnippetError as error:
        pytest.fail(f"{snippet}: {error}")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.relative_to(ROOT).as_posix() not in NAMES_OTHERS_KEYS], ids=lambda page: page.stem
)
def test_keys_in_the_text_exist(page):
    assert unknown_keys(page.read_text(encoding="utf-8")) == []
