"""One page of HTML that needs nothing else: its frame, its parts, and pictures within it."""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING

from rayjobs.evaluate.page.markup import Html, element
from rayjobs.evaluate.page.style import STYLE

if TYPE_CHECKING:
    from collections.abc import Sequence

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, above: Sequence[Html], parts: Sequence[tuple[str, Html]], below_links: Html = Html()) -> str:  # noqa: B008  a constant
    """Return a page.

    Args:
        title: of the page.
        above: what stands below the title.
        parts: headings and contents; those without content are left out.
        below_links: what stands between the links to the parts and the first.
    """
    shown = [(heading, content) for heading, content in parts if content]
    anchors = [f"part-{number}" for number in range(len(shown))]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", title),
        element("style", STYLE),
    )
    links = element("nav", *(element("a", heading, href=f"#{anchor}") for anchor, (heading, _) in zip(anchors, shown, strict=True)))
    sections = (
        element("section", element("h2", heading), content, id=anchor) for anchor, (heading, content) in zip(anchors, shown, strict=True)
    )
    body = element("body", element("h1", title), *above, links, below_links, *sections)
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def picture(name: str, png: bytes, caption: str) -> Html:
    """Return a picture that the page itself carries.

    Raises:
        ValueError: it is not a PNG.
    """
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"the picture {name!r} is not a PNG")
    width, height = struct.unpack(">II", png[16:24])
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    image = element("img", src=source, alt=caption, width=width, height=height)
    return element("figure", image, element("figcaption", caption))
