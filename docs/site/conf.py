"""How Sphinx makes a site of the Markdown in this repository: which pages, in which order, and what is added to them while it builds."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import configuration  # noqa: E402  beside this file, where Sphinx does not look

project = "rayjobs"
copyright = "the authors of rayjobs, Apache-2.0"  # noqa: A001  Sphinx's name
html_title = "rayjobs"
html_theme = "furo"
html_copy_source = False
html_show_sphinx = False
extensions = ["myst_parser"]
myst_heading_anchors = 4
root_doc = "README"
include_patterns = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "configs/*.md", "deploy/**.md", "docs/**"]
exclude_patterns = ["docs/site", ".*", "build", "demo", "dist", "mlruns", "rayjobs", "tests", "workspace"]

PARTS = {
    "Learn": ["docs/concepts", "docs/glossary", "docs/curator", "docs/recipes", "docs/imagery", "configs/README"],
    "Look up": [
        "docs/configuration",
        "docs/http",
        "docs/page",
        "docs/labelling",
        "docs/labels",
        "docs/active",
        "docs/worldview",
        "docs/indexes",
        "docs/tune",
    ],
    "Run": ["docs/operations", "deploy/README", "docs/doctor", "docs/security", "docs/reliability", "docs/scale", "docs/performance"],
    "Why": ["docs/experiments", "ARCHITECTURE", "docs/adr/README", "CONTRIBUTING", "CHANGELOG"],
}
"""The pages by part of the navigation. One that is not there is passed over; one that is there and not here comes under `More`."""

FOUND = ("docs/*.md", "deploy/**/*.md", "configs/*.md")
"""Where pages are that the navigation must hold, known or not."""

CONTENTS = "```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"
DECISIONS = "```{toctree}\n:glob:\n:maxdepth: 1\n\n0*\n```\n"


def contents() -> str:
    """Return the navigation, as directives that end the front page."""
    known = {page for pages in PARTS.values() for page in pages}
    found = sorted(path.relative_to(ROOT).with_suffix("").as_posix() for pattern in FOUND for path in ROOT.glob(pattern))
    parts = PARTS | {"More": [page for page in found if page not in known]}
    there = {caption: [page for page in pages if (ROOT / f"{page}.md").is_file()] for caption, pages in parts.items()}
    return "\n".join(CONTENTS.format(caption=caption, pages="\n".join(pages)) for caption, pages in there.items() if pages)


ENDINGS = {"README": contents, "docs/adr/README": lambda: DECISIONS, "docs/configuration": configuration.sections}
"""What stands below the text of a page in the site alone."""


def complete(_: Sphinx, page: str, source: list[str]) -> None:
    """Add what a page ends with, and lead links to a folder to its README, as a forge does."""
    ending = ENDINGS[page]() if page in ENDINGS else ""
    source[0] = re.sub(r"\[([^\]]*)\]\(([\w/.-]+)\)", lambda link: leading(page, link), source[0]) + "\n" + ending


def leading(page: str, link: re.Match[str]) -> str:
    """Return a link as the site has it: to the README of a folder, and no link to a folder without one."""
    text, target = link.groups()
    folder = (ROOT / page).parent / target
    if not folder.is_dir():
        return link[0]
    return f"[{text}]({target.rstrip('/')}/README.md)" if (folder / "README.md").is_file() else text


def begin_at_index(app: Sphinx, error: Exception | None) -> None:
    """Put the front page where a web server looks for it."""
    if error is None and app.builder.format == "html":
        shutil.copyfile(app.outdir / "README.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    """Connect the above to Sphinx."""
    app.connect("source-read", complete)
    app.connect("build-finished", begin_at_index)
