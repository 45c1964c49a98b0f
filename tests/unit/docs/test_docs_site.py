"""The site builds without a warning, finds its pages by itself, and asks nothing of any other server."""

from __future__ import annotations

import html.parser
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

from rayjobs.config import keys
from rayjobs.experiment import Experiment

ROOT = Path(__file__).parents[3]
SOURCES = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "cluster.yaml", "configs", "deploy", "docs")
_LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
}
_STYLE = re.compile(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//")


def built(sources, folder):
    """Build as `make docs` does; return what came of it."""
    (command,) = re.findall(r"^\t\$\(BIN\)/python (-m sphinx .*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    arguments = command.replace("build/site", str(folder / "site")).replace("build/doctrees", str(folder / "doctrees")).split()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=sources, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    done = built(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def copy(tmp_path):
    """The documents in a folder of their own, to be changed."""
    (tmp_path / "copy").mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / "copy" / name)
        else:
            shutil.copy(ROOT / name, tmp_path / "copy" / name)
    return tmp_path / "copy"


class Page(html.parser.HTMLParser):
    """What a page of HTML loads, where it leads, and the places in it that can be led to."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.leads, self.places = [], [], {""}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.places |= {given[name] for name in ("id", "name") if given.get(name)}
        if _STYLE.search(given.get("style") or ""):
            self.loads.append(given["style"])
        if tag == "a":
            self.leads.append(given.get("href") or "")
        elif tag == "link":
            self.loads.append(given["href"])
        elif given.get(_LOADED.get(tag, "")):
            self.loads.append(given[_LOADED[tag]])

    def handle_data(self, data):
        if self.lasttag == "style" and _STYLE.search(data):
            self.loads.append(data)


def is_elsewhere(address):
    return bool(re.match(r"(https?:)?//", address)) or bool(_STYLE.search(address))


def pages_of(site):
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def broken(site):
    """Links that lead to no file of the site, or to no place in it."""
    pages = pages_of(site)
    return [
        f"{path.relative_to(site)}: {link}"
        for path, page in pages.items()
        for link in (*page.leads, *page.loads)
        if not urllib.parse.urlsplit(link).scheme and not _there(path, urllib.parse.urlsplit(link), pages)
    ]


def _there(path, link, pages):
    target = (path.parent / urllib.parse.unquote(link.path)).resolve() if link.path else path
    return target.is_file() and (target not in pages or urllib.parse.unquote(link.fragment) in pages[target].places)


def test_every_document_is_a_page(site):
    sources = [ROOT / "README.md", ROOT / "configs" / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert all((site / path.relative_to(ROOT).with_suffix(".html")).is_file() for path in sources)
    assert (site / "index.html").read_bytes() == (site / "README.html").read_bytes()


def test_nothing_is_loaded_from_elsewhere(site):
    assert [(path.name, address) for path, page in pages_of(site).items() for address in page.loads if is_elsewhere(address)] == []
    assert [path.name for path in site.rglob("*.css") if _STYLE.search(path.read_text(encoding="utf-8"))] == []
    assert not [path.name for path in site.rglob("*") if path.suffix in {".js", ".mjs"} and "cdn." in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize(
    "markup",
    [
        '<script src="https://cdn.example.org/a.js"></script>',
        '<link rel="stylesheet" href="//fonts.example.org/css">',
        '<img src="http://example.org/a.png">',
        "<style>@import 'https://example.org/a.css';</style>",
        '<p style="background: url(https://example.org/a.png)">',
    ],
)
def test_what_is_loaded_from_elsewhere_is_found(markup):
    assert [address for address in Page(markup).loads if is_elsewhere(address)]
    assert not [address for address in Page(re.sub(r"(https?:)?//[a-z.]+/", "_static/", markup)).loads if is_elsewhere(address)]


def test_every_link_within_the_site_leads_somewhere(site):
    assert broken(site) == []


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#c"></a><a href="#here" id="here"></a><a href="https://example.org/">')
    (tmp_path / "b.html").write_text('<p id="c">')
    assert broken(tmp_path) == []
    (tmp_path / "b.html").write_text('<a href="d.html"></a>')
    assert sorted(broken(tmp_path)) == ["a.html: b.html#c", "b.html: d.html"]


def test_a_new_document_is_found_and_a_wrong_link_is_refused(copy, tmp_path):
    for name in ("another", "unforeseen"):
        links = f"[the glossary](glossary.md), [itself](#all-about-{name}), [a folder](../deploy/cluster), [another](images/)"
        (copy / "docs" / f"{name}.md").write_text(f"# All about {name}\n\nSee {links}.\n")
    (copy / "deploy" / "cluster").mkdir(parents=True)
    (copy / "deploy" / "cluster" / "README.md").write_text("# A cluster\n")
    done = built(copy, tmp_path)
    assert done.returncode == 0, done.stderr
    front = Page((tmp_path / "site" / "index.html").read_text(encoding="utf-8"))
    assert {"docs/another.html", "docs/unforeseen.html", "deploy/cluster/README.html"} <= set(front.leads)
    page = Page((tmp_path / "site" / "docs" / "unforeseen.html").read_text(encoding="utf-8"))
    assert "../deploy/cluster/README.html" in page.leads
    assert not [link for link in page.leads if "images" in link]
    (copy / "docs" / "another.md").write_text("# Another\n\n[nothing](nothing.md), [nowhere](glossary.md#nowhere)\n")
    done = built(copy, tmp_path)
    assert done.returncode != 0
    assert "nothing.md" in done.stderr
    assert "nowhere" in done.stderr


@pytest.fixture(scope="module")
def reference(site):
    """The rows of the configuration reference, by section."""
    text = (site / "docs" / "configuration.html").read_text(encoding="utf-8")
    sections = re.findall(r"<h[23]>(.*?)<a class=\"headerlink\".*?</h[23]>(.*?)(?=<section|</section>)", text, re.DOTALL)
    return {
        _words(heading): [[_words(cell) for cell in re.findall(r"<td>(.*?)</td>", row, re.DOTALL)] for row in body.split("<tr")]
        for heading, body in sections
    }


def _words(markup):
    return html.unescape(re.sub(r"<[^>]+>", "", markup)).strip()


def test_the_reference_lists_every_key(reference):
    for key in keys(Experiment):
        section, _, name = key.path.rpartition(".")
        rows = [row for row in reference[section or "The experiment itself"] if row and row[0] == name]
        assert any(row[1] == key.default and key.kinds == tuple(row[3].split(", ") if len(row) == 5 and row[3] else ()) for row in rows), (
            key
        )
    listed = sum(bool(row and row[0]) for rows in reference.values() for row in rows)
    assert listed == len(list(keys(Experiment)))


@pytest.mark.parametrize(
    ("section", "name", "values"),
    [
        ("train", "ema", "number at least 0 and below 1"),
        ("train", "num_workers", "whole number at least 1 or list (2) of whole number at least 1"),
        ("tiles.sampler", "stride", "whole number at least 1 or null"),
        ("rasters.label_map", "palette", "osm or corine or mapping or null"),
        ("rasters", "aoi", "list (4) of number or text or null"),
        ("serve", "host", "text"),
        ("index", "kind", "auto, flat, hnsw, ivf_flat, ivf_pq, ivf_rabitq, sq8, binary, hamming, hamming_ivf"),
        ("loss", "beta", "number above 0"),
        ("model", "freeze", "whole number at least -1 or all"),
    ],
)
def test_the_reference_says_what_is_permitted(reference, section, name, values):
    assert [row[2] for row in reference[section] if row and row[0] == name] == [values]


def test_what_lies_below_a_kind_is_told_by_that_kind(reference, site):
    bands = [(row[2], row[3]) for row in reference["rasters.sources[].quality"] if row and row[0] == "band"]
    assert bands == [("text or whole number", "files"), ("whole number above 0", "stac, stac_api")]
    page = _words((site / "docs" / "configuration.html").read_text(encoding="utf-8"))
    assert "stac: The asset that says which pixels of an item cannot be used." in page
