"""The configuration reference: every key of the experiment file, section by section, as the code declares it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pydantic

from rayjobs.config import Key, keys
from rayjobs.experiment import Experiment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Declared = tuple[str, "Mapping[str, Any]"]
"""The kind of a section, empty where there is but one, and its JSON Schema."""

_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}
"""JSON Schema's words for the bounds of a number, and ours."""


def sections() -> str:
    """Return the reference as Markdown: a heading, the section's own words and a table of keys for each section."""
    schema = pydantic.TypeAdapter(Experiment).json_schema()
    groups: dict[str, list[Key]] = {}
    for key in keys(Experiment):
        groups.setdefault(key.path.rpartition(".")[0], []).append(key)
    return "\n".join(_section(path, rows, _declared(schema, path)) for path, rows in groups.items())


def _declared(schema: Mapping[str, Any], path: str) -> list[Declared]:
    """Return a section as JSON Schema has it, or each of its kinds; what lies below a kind counts as that kind's."""
    found: list[Declared] = [("", schema)]
    for part in path.replace("[]", "").split(".") if path else ():
        hints = [(kind, one["properties"][part]) for kind, one in found if part in one["properties"]]
        named = [(kind, schema["$defs"][name]) for kind, hint in hints for name in _names(hint)]
        found = [(one["properties"].get("kind", {}).get("const", kind), one) for kind, one in named]
    return found


def _names(hint: Any) -> Iterator[str]:
    """Name the sections that a key may hold."""
    if isinstance(hint, dict) and "$ref" in hint:
        yield hint["$ref"].rpartition("/")[2]
    for inner in hint.values() if isinstance(hint, dict) else hint if isinstance(hint, list) else ():
        yield from _names(inner)


def _section(path: str, rows: Sequence[Key], declared: Sequence[Declared]) -> str:
    level = "###" if "." in path else "##"
    heading = f"{level} `{path}`" if path else "## The experiment itself"
    return "\n".join([heading, "", *_purpose(declared), "", *_table(rows, declared), ""])


def _purpose(declared: Sequence[Declared]) -> list[str]:
    """Return what a section says of itself, or what each of its kinds does."""
    if len(declared) == 1:
        return [declared[0][1]["description"]]
    return [f"- `{kind}`: {one['description']}" for kind, one in declared]


def _table(rows: Sequence[Key], declared: Sequence[Declared]) -> list[str]:
    of_kinds = any(row.kinds for row in rows)
    head = ["key", "default", "values", *(["of kind"] if of_kinds else []), "what it does"]
    return [_line(head), _line(["---"] * len(head)), *(_line(_cells(row, declared, of_kinds=of_kinds)) for row in rows)]


def _cells(row: Key, declared: Sequence[Declared], *, of_kinds: bool) -> list[str]:
    name = row.path.rpartition(".")[2]
    default = row.default if row.default == "required" else f"`{row.default}`"
    kinds = [", ".join(f"`{kind}`" for kind in row.kinds)] if of_kinds else []
    return [f"`{name}`", default, _values(row, name, declared), *kinds, row.description]


def _values(row: Key, name: str, declared: Sequence[Declared]) -> str:
    if row.choices:
        return ", ".join(f"`{choice}`" for choice in row.choices)
    return next(_written(one["properties"][name]) for kind, one in declared if name in one["properties"] and kind in (row.kinds or (kind,)))


def _written(hint: Mapping[str, Any]) -> str:
    """Return what JSON Schema permits, in words."""
    if "anyOf" in hint:
        return " or ".join(dict.fromkeys(_written(one) for one in hint["anyOf"]))
    if "oneOf" in hint or "$ref" in hint:
        return "a section"
    if "const" in hint or "enum" in hint:
        return " or ".join(f"`{value}`" for value in hint.get("enum", [hint.get("const")]))
    if hint["type"] == "array":
        return _list(hint)
    bounds = " and ".join(words.format(hint[bound]) for bound, words in _BOUNDS.items() if bound in hint)
    return f"{_TYPES[hint['type']]} {bounds}".strip()


_TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null", "object": "mapping"}


def _list(hint: Mapping[str, Any]) -> str:
    entries = hint.get("items") or hint["prefixItems"][0]
    least, most = hint.get("minItems"), hint.get("maxItems")
    many = f" ({most})" if most is not None and least == most else f" ({least} or more)" if least else ""
    return f"list{many} of {_written(entries)}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
