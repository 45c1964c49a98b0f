"""Typed sections of an experiment file: how they are declared, read, overridden and written.

Knows no section: each room declares its own with `@section`, and `rayjobs.experiment` composes them.
Validation is pydantic's; this module adds the nearest spelling of an unknown key, dotted overrides and YAML.
"""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import pydantic
import yaml

from rayjobs.errors import ConfigError

T = TypeVar("T")

_PYDANTIC = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def section(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only, validated part of the experiment file.

    The docstring under each field becomes its description in `--help` and in the JSON schema.
    """
    return typing.cast("type[T]", pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_PYDANTIC)(cls))


class Key(NamedTuple):
    """One key of the experiment file, as `--help` and the reference list it."""

    path: str
    """Dotted, as on the command line: `loss.margin`."""
    default: str
    """The default as YAML, or `required`."""
    description: str


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigError: the file is absent, is not YAML, or is not a mapping.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the experiment file {path}: {error.strerror}; pass --config FILE") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, such as `tiles:` and `model:`")
    return raw


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Read `--section.key VALUE` and `--section.key=VALUE` into dotted keys; values are YAML.

    Raises:
        ConfigError: an argument is not of that form, or has no value.
    """
    overrides: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or name == "--":
            raise ConfigError(f"cannot read the argument {name!r}; overrides are written --section.key VALUE")
        if not equals:
            if not rest:
                raise ConfigError(f"{name} needs a value: {name} VALUE")
            value = rest.pop(0)
        try:
            overrides[name[2:].replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"the value of {name} is not valid YAML: {value!r}") from error
    return overrides


def apply_overrides(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `raw` with each dotted key set; nothing is changed in place.

    Raises:
        ConfigError: a key leads through something that is not a section.
    """
    result = dict(raw)
    for dotted, value in overrides.items():
        head, _, tail = dotted.partition(".")
        if not tail:
            result[head] = value
            continue
        inner = result.get(head) or {}
        if not isinstance(inner, Mapping):
            raise ConfigError(f"--{dotted}: {head} is a value, not a section")
        result[head] = apply_overrides(inner, {tail: value})
    return result


def build(cls: type[T], raw: Mapping[str, Any]) -> T:
    """Validate a mapping into `cls`.

    Raises:
        ConfigError: an unknown key (with the nearest spelling), a missing key or a wrong value; all faults in one line.
    """
    try:
        return pydantic.TypeAdapter(cls).validate_python(raw)
    except pydantic.ValidationError as error:
        known = sorted({part for key in keys(cls) for part in _prefixes(key.path)})
        faults = [_explain(fault, raw, known) for fault in error.errors(include_url=False)]
        raise ConfigError("; ".join(dict.fromkeys(faults))) from None


def _explain(fault: Any, raw: Mapping[str, Any], known: Sequence[str]) -> str:
    absent = fault["type"] in {"missing", "missing_argument"}
    path = _dotted(fault["loc"], raw, keep_last=absent)
    if absent:
        return f"{path!r} is required"
    if fault["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
        return f"unknown key {path!r}" + (f"; did you mean {near[0]!r}?" if near else "; `--help` lists the keys")
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path} = {fault['input']!r}: {message[0].lower()}{message[1:]}"


def _prefixes(path: str) -> Iterator[str]:
    parts = path.split(".")
    return (".".join(parts[: end + 1]) for end in range(len(parts)))


def _dotted(location: Sequence[Any], raw: Any, *, keep_last: bool) -> str:
    """Write pydantic's location as the user's key, leaving out the names of union members, which the user never typed."""
    parts: list[str] = []
    value = raw
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if (isinstance(value, Mapping) and part in value) or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            value = value[part]
        elif not (last and keep_last):
            continue
        parts.append(str(part))
    return ".".join(parts)


def keys(cls: type[Any], prefix: str = "") -> Iterator[Key]:
    """List every key below a section, those of all union members included, each once."""
    seen: set[str] = set()
    for key in _walk(cls, prefix):
        if key.path not in seen:
            seen.add(key.path)
            yield key


def _walk(cls: type[Any], prefix: str) -> Iterator[Key]:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = cls.__pydantic_fields__
    for name, field in fields.items():
        inner = list(_sections_of(hints[name]))
        if not inner:
            default = "required" if field.is_required() else json.dumps(_plain(field.get_default(call_default_factory=True)))
            yield Key(prefix + name, default, " ".join((field.description or "").split()))
        for member in inner:
            yield from _walk(member, f"{prefix}{name}.")


def _sections_of(hint: Any) -> Iterator[type[Any]]:
    if isinstance(hint, type) and hasattr(hint, "__pydantic_fields__"):
        yield hint
    elif isinstance(hint, types.UnionType) or typing.get_origin(hint) is not None:
        for argument in typing.get_args(hint):
            yield from _sections_of(argument)


def _plain(value: Any) -> Any:
    return json.loads(pydantic.TypeAdapter(Any).dump_json(value))


def to_dict(value: Any) -> dict[str, Any]:
    """Return a section as plain JSON values (what is stored beside artefacts and logged to MLflow)."""
    return typing.cast("dict[str, Any]", json.loads(pydantic.TypeAdapter(type(value)).dump_json(value)))


def to_yaml(value: Any) -> str:
    """Return a section as YAML that `build` reads back to an equal value."""
    return yaml.safe_dump(to_dict(value), sort_keys=False, allow_unicode=True)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name the dotted keys whose values differ between two resolved experiments, each with both values."""
    before, after = flatten(old), flatten(new)
    names = sorted(before.keys() | after.keys())
    return [f"{name}: {before.get(name)!r} -> {after.get(name)!r}" for name in names if before.get(name) != after.get(name)]
