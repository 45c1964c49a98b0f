"""HTML that cannot be broken out of: what is not markup already is escaped."""

from __future__ import annotations

import html


class Html(str):
    """Text that is markup. Only `element`, `joined` and constants of our own make it."""

    __slots__ = ()


def element(name: str, /, *children: object, **attributes: str | int | None) -> Html:
    """Return an element; children that are not markup are escaped, and attributes that are None are left out.

    Args:
        name: of the element; `img`, `meta` and the like take no children and have no end.
        children: markup, or anything that is to be read as text.
        attributes: by name; a trailing underscore is dropped, as in `class_`, and other underscores are hyphens.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items() if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{joined(*children)}</{name}>")


_VOID = frozenset({"img", "meta"})
"""Elements of HTML without an end, of those that a report has."""


def joined(*children: object) -> Html:
    """Return children one after the other, escaped where they are not markup."""
    return Html("".join(child if isinstance(child, Html) else html.escape(str(child)) for child in children))
