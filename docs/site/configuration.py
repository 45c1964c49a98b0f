"""The configuration reference: every key of the experiment file, section by section, as the code declares it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pydantic

from rayjobs.config import Key, keys
from rayjobs.experiment import Experiment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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


def _declared(schema: Mapping[str, Any], path: str) -> list[Mapping[str, Any]]:
    """Return the schema of a section, or those of its kinds."""
    found = [schema]
    for part in path.replace("[]", "").split(".") if path else ():
        hints = [one["properties"][part] for one in found if part in one["properties"]]
        found = [schema["$defs"][name] for name in dict.fromkeys(name for hint in hints for name in _names(hint))]
    return found


def _names(hint: Any) -> Iterator[str]:
    """Name the sections that a key may hold."""
    if isinstance(hint, dict) and "$ref" in hint:
        yield hint["$ref"].rpartition("/")[2]
    for inner in hint.values() if isinstance(hint, dict) else hint if isinstance(hint, list) else ():
        yield from _names(inner)


def _section(path: str, rows: Sequence[Key], declared: Sequence[Mapping[str, Any]]) -> str:
    level = "###" if "." in path else "##"
    heading = f"{level} `{path}`" if path else "## The experiment itself"
    return "\n".join([heading, "", *_purpose(declared), "", *_table(rows, declared), ""])


def _purpose(declared: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a section says of itself, or what each of its kinds does."""
    if len(declared) == 1:
        return [declared[0]["description"]]
    return [f"- `{_kind(one)}`: {one['description']}" for one in declared]


def _kind(declared: Mapping[str, Any]) -> str:
    return str(declared["properties"].get("kind", {}).get("const", ""))


def _table(rows: Sequence[Key], declared: Sequence[Mapping[str, Any]]) -> list[str]:
    of_kinds = any(row.kinds for row in rows)
    head = ["key", "default", "values", *(["of kind"] if of_kinds else []), "what it does"]
    return [_line(head), _line(["---"] * len(head)), *(_line(_cells(row, declared, of_kinds=of_kinds)) for row in rows)]


def _cells(row: Key, declared: Sequence[Mapping[str, Any]], *, of_kinds: bool) -> list[str]:
    name = row.path.rpartition(".")[2]
    default = row.default if row.default == "required" else f"`{row.default}`"
    kinds = [", ".join(f"`{kind}`" for kind in row.kinds)] if of_kinds else []
    return [f"`{name}`", default, _values(row, name, declared), *kinds, row.description]


def _values(row: Key, name: str, declared: Sequence[Mapping[str, Any]]) -> str:
    if row.choices:
        return ", ".join(f"`{choice}`" for choice in row.choices)
    having = [one for one in declared if name in one["properties"] and (not row.kinds or _kind(one) in ("", *row.kinds))]
    return _written(having[0]["properties"][name])


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
    many = f"{most} of " if most is not None and least == most else f"at least {least} of " if least else ""
    return f"list of {many}{_written(entries)}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
