"""Typed sections of an experiment file: how they are declared, read, overridden and written.

Knows no section: each room declares its own with `@section`, and `rayjobs.experiment` composes them.
Validation is pydantic's; this module adds the nearest spelling of an unknown key, dotted overrides and YAML.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import pydantic
import yaml

from rayjobs.errors import ConfigError

T = TypeVar("T")

_ENTRY = "[]"
"""Marks the keys of a list's entries."""
_TAG = "kind"
"""The key by which a section that comes in several kinds is told."""

_PYDANTIC = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def section(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only, validated part of the experiment file.

    The docstring under each field becomes its description in `--help` and in the JSON schema, in sections that inherit the field, too.
    """
    made = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_PYDANTIC)(cls)
    for name, field in made.__pydantic_fields__.items():
        # pydantic reads the docstrings of the class itself alone; an inherited field is the base's own `dataclasses.Field`
        made.__dataclass_fields__[name].metadata = types.MappingProxyType({"description": field.description})
    return typing.cast("type[T]", made)


class Key(NamedTuple):
    """One key of the experiment file, as `--help` and the reference list it."""

    path: str
    """Dotted, as on the command line: `loss.margin`; `rasters.sources[].uris` in the entries of a list, which is given whole."""
    default: str
    """The default as YAML, or `required`."""
    description: str
    choices: tuple[str, ...] = ()
    """The permitted values as YAML, where they are few."""
    kinds: tuple[str, ...] = ()
    """Of a section that comes in several kinds: those that have the key; empty where all have it."""

    @property
    def is_option(self) -> bool:
        """Whether the command line can set this key by itself."""
        return _ENTRY not in self.path


class _Loader(yaml.SafeLoader):
    """YAML in which `true` and `false` alone are booleans, as since YAML 1.2: yes, no, on and off are words, such as a key may permit."""

    yaml_implicit_resolvers = {  # noqa: RUF012  PyYAML's way to say so
        first: [(tag, form) for tag, form in forms if tag != "tag:yaml.org,2002:bool"]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def yaml_of(text: str) -> Any:
    """Return what a text says as YAML.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, _Loader)  # noqa: S506  a safe one


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigError: the file is absent, is not YAML, or is not a mapping.
    """
    try:
        raw = yaml_of(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the experiment file {path}: {error.strerror}; pass --config FILE") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start + 1} cannot be read): save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_where(error)}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, such as `tiles:` and `model:`")
    return raw


def _where(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


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
            overrides[name[2:].replace("-", "_")] = yaml_of(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"the value of {name} is not valid YAML: {value!r}") from error
    return overrides


def apply_overrides(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `raw` with each dotted key set; nothing is changed in place.

    Raises:
        ConfigError: a key leads through something that is not a section; names the whole key, and says how a list is given.
    """
    result = dict(raw)
    for dotted, value in overrides.items():
        result = _with_value(result, dotted.split("."), 0, value)
    return result


def _with_value(inner: Mapping[str, Any], parts: Sequence[str], depth: int, value: Any) -> dict[str, Any]:
    """Return a section with the key `parts`, of which `depth` led here, set."""
    part, last = parts[depth], depth == len(parts) - 1
    if last:
        return {**inner, part: value}
    below = inner.get(part) or {}
    if not isinstance(below, Mapping):
        raise ConfigError(f"--{'.'.join(parts)}: {_no_section(below, parts[: depth + 1], parts[depth + 1 :])}")
    return {**inner, part: _with_value(below, parts, depth + 1, value)}


def _no_section(found: Any, above: Sequence[str], below: Sequence[str]) -> str:
    whole = ".".join(above)
    if not isinstance(found, list):
        return f"{whole} is a value, not a section"
    entry = next((part for part in below if not part.isdigit()), "key")
    return f"{whole} is a list, and lists are given whole: --{whole} '[{{{entry}: ..., ...}}]'"


def build(cls: type[T], raw: Mapping[str, Any]) -> T:
    """Validate a mapping into `cls`.

    Raises:
        ConfigError: an unknown key (with the nearest spelling), a missing key or a wrong value; all faults in one line.
    """
    try:
        return pydantic.TypeAdapter(cls).validate_python(raw)
    except pydantic.ValidationError as error:
        known = sorted({part for key in keys(cls) for part in _prefixes(key.path.replace(_ENTRY, ""))})
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
    message = message[0].lower() + message[1:]
    if fault["input"] is None:
        return f"{path} is empty (null): {message}"
    return f"{path} = {_shown(fault['input'])}: {_REWORDED.get(fault['type'], message)}"


_REWORDED = {
    "string_type": "should be text; put it in quotes",
    "model_attributes_type": "is a group of keys; give those below it, as `--help` lists them (--KEY.kind NAME)",
    "dataclass_type": "is a group of keys; give those below it, as `--help` lists them",
    "tuple_type": "should be a list, such as [a, b]; lists are given whole",
}
"""What pydantic says in Python's words."""


def _shown(value: Any) -> str:
    """Return a value as YAML has it, not as Python does."""
    return json.dumps(value, default=str) if value is None or isinstance(value, bool | list | dict) else repr(value)


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


def keys(cls: type[Any]) -> Iterator[Key]:
    """List every key below a section, those of all its kinds included.

    Each comes once, unless kinds give it different defaults or meanings.
    """
    merged: dict[Key, dict[str, None]] = {}
    for key in _walk(cls, None, ""):
        merged.setdefault(key._replace(kinds=()), {}).update(dict.fromkeys(key.kinds))
    for key, kinds in merged.items():
        yield key._replace(kinds=tuple(kinds))


def _walk(cls: type[Any], given: Any, prefix: str) -> Iterator[Key]:
    """List the keys of a section; `given` is one whose values are the defaults, None for the class's own."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for name in _own_first(cls):
        field = cls.__pydantic_fields__[name]
        required = given is None and field.is_required()
        default = getattr(given, name) if given is not None else None if required else field.get_default(call_default_factory=True)
        description = " ".join((field.description or "").split())
        members = list(_sections_of(hints[name]))
        repeated = bool(members) and _is_list(hints[name])
        if repeated or not members or (default is None and not required):
            written = "required" if required else json.dumps(_plain(default))
            yield Key(prefix + name, written, description, choices=() if members else _choices(hints[name]))
            description = ""
        yield from _below(members, default, f"{prefix}{name}{_ENTRY if repeated else ''}.", description)


def _own_first(cls: type[Any]) -> Iterator[str]:
    """Name the fields of a section: its own, then those that it inherits."""
    names = dict.fromkeys(name for one in cls.__mro__ for name in inspect.get_annotations(one))
    return (name for name in names if name in cls.__pydantic_fields__)


def _below(members: Sequence[type[Any]], default: Any, prefix: str, description: str) -> Iterator[Key]:
    """List the keys of a section's kinds, of which there may be but one."""
    if len(members) > 1 and all(_tags(member) for member in members):
        yield _tag_of(members, default, prefix, description)
    for member in members:
        yield from _of_member(member, default if type(default) is member else None, prefix, alone=len(members) == 1)


def _of_member(member: type[Any], given: Any, prefix: str, *, alone: bool) -> Iterator[Key]:
    """List the keys of one kind of a section; its tag is listed once for all kinds."""
    for key in _walk(member, given, prefix):
        if alone:
            yield key
        elif key.path != prefix + _TAG:
            yield key._replace(kinds=_tags(member))


def _tag_of(members: Sequence[type[Any]], default: Any, prefix: str, description: str) -> Key:
    return Key(
        path=prefix + _TAG,
        default=json.dumps(getattr(default, _TAG)) if hasattr(default, _TAG) else "required",
        description=description or "Which kind; each has its own keys.",
        choices=tuple(tag for member in members for tag in _tags(member)),
    )


def _tags(member: type[Any]) -> tuple[str, ...]:
    return _choices(typing.get_type_hints(member, include_extras=True).get(_TAG))


def _choices(hint: Any) -> tuple[str, ...]:
    """Return the permitted values of a key that is a choice; none where numbers or free text are permitted, too."""
    if hint is bool:
        return "true", "false"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return tuple(_written(value) for value in arguments)
    if origin is typing.Annotated:
        return _choices(arguments[0])
    if origin in {typing.Union, types.UnionType}:
        parts = [("null",) if argument is type(None) else _choices(argument) for argument in arguments]
        return tuple(value for part in parts for value in part) if all(parts) else ()
    return ()


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _is_list(hint: Any) -> bool:
    """Whether a key takes a list of sections."""
    if typing.get_origin(hint) in {tuple, list}:
        return True
    return typing.get_origin(hint) is not None and any(_is_list(argument) for argument in typing.get_args(hint))


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
    values = to_dict(value)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    # a NEL written as it is would be read as the end of a line
    return yaml.safe_dump(values, sort_keys=False) if "\x85" in text else text


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
    names = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    return [f"{name}: {_value_of(before, name)} -> {_value_of(after, name)}" for name in names]


def _value_of(values: Mapping[str, Any], name: str) -> str:
    return _shown(values[name]) if name in values else "not set"
