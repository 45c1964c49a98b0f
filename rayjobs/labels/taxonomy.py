"""Taxonomies: the classes that people tell apart, in numbered versions of which none is ever changed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from rayjobs.errors import DamagedError, LabelError, PublishConflictError, UnknownTaxonomyError

if TYPE_CHECKING:
    from rayjobs.storage import Store

ROOT = "labels/"
"""Where labels lie in a workspace, each taxonomy's below its name."""
_KNOWN = f"{ROOT}taxonomies/"
"""One object for each taxonomy: listing them must not list every event."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_RESERVED = "taxonomies"
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#999999")
"""Colours that the colour-blind can tell apart (Okabe and Ito, 2008), for classes that name none."""
_KEYS = "1234567890abcdefghijklmnopqrstvwxyz"
"""Keys for classes that name none; `u` means unsure."""
_LONGEST_NAME, _LONGEST_DESCRIPTION, _MOST_CLASSES = 64, 500, 100
UNSURE = "unsure"
"""What nobody can call a class."""
BINARY = ("positive", "negative")
"""Classes of a binary taxonomy."""


def check_taxonomy_name(name: str) -> str:
    """Return a name that may be a taxonomy's. Raises `ValueError`."""
    if not _NAME.fullmatch(name) or name == _RESERVED:
        raise ValueError(
            f"{name[:80]!r} cannot be a taxonomy's name; use up to 64 of a-z, 0-9, '-' and '_', begin with a letter or a digit"
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelClass:
    """One class of a taxonomy."""

    name: str
    """What it is called, 64 characters at most; the label of a tile."""
    key: str = ""
    """The key that gives it in the page, one character; empty: the first that is free."""
    colour: str = ""
    """`#rrggbb`; empty: the next of a palette."""
    description: str = ""
    """What belongs to it, for those who label."""
    formerly: tuple[str, ...] = ()
    """Names that it had in earlier versions: labels under these are its own."""

    def __post_init__(self) -> None:
        """Refuse what the page or an image folder could not show, and what a spreadsheet would take for a formula."""
        for name in (self.name, *self.formerly):
            if (
                not name.strip()
                or name != name.strip()
                or len(name) > _LONGEST_NAME
                or not name.isprintable()
                or "/" in name
                or "." in {name[0], name[-1]}
                or name[0] in "=+-@"
            ):
                raise LabelError(
                    f"{name[:80]!r} cannot be a class; use up to {_LONGEST_NAME} printable characters, no '/', no '.' or blank at the "
                    "ends, none of = + - @ first"
                )
        if self.name.lower() == UNSURE:
            raise LabelError(f"class {self.name!r}: it is always allowed to be unsure, and that is no class; leave it out")
        if self.colour and not _COLOUR.fullmatch(self.colour):
            raise LabelError(f"class {self.name!r}: {self.colour[:20]!r} is no colour; write #rrggbb in lower case")
        if len(self.key) > 1 or (self.key and (not self.key.isprintable() or self.key in {"u", " "})):
            raise LabelError(f"class {self.name!r}: {self.key[:20]!r} is no key; give one character, but not 'u', which means unsure")
        if len(self.description) > _LONGEST_DESCRIPTION:
            raise LabelError(f"class {self.name!r}: its description is longer than {_LONGEST_DESCRIPTION} characters; shorten it")

    @property
    def names(self) -> frozenset[str]:
        """All names that it ever had."""
        return frozenset({self.name, *self.formerly})


@dataclass(frozen=True, slots=True, kw_only=True)
class Taxonomy:
    """Classes that exclude each other. "Unsure" is always allowed, and is none of them."""

    name: str
    """See `check_taxonomy_name`."""
    version: int
    """From 1."""
    classes: tuple[LabelClass, ...]
    """In the order in which they are shown; their keys differ, and their names by more than upper and lower case."""

    def __post_init__(self) -> None:
        """Refuse classes that cannot be told apart."""
        if not 2 <= len(self.classes) <= _MOST_CLASSES:  # noqa: PLR2004  one class tells nothing apart
            raise LabelError(f"taxonomy {self.name!r} has {len(self.classes)} classes; give 2 to {_MOST_CLASSES}")
        names = [name for one in self.classes for name in {name.casefold() for name in one.names}]
        for what, values in (("name", names), ("key", [one.key for one in self.classes])):
            doubles = sorted({value for value in values if value and values.count(value) > 1})
            if doubles:
                raise LabelError(
                    f"taxonomy {self.name!r}: two classes have the {what} {doubles[0]!r}; give each its own (names: by more than case)"
                )

    @property
    def binary(self) -> bool:
        """Whether the classes are positive and negative, as they are called or once were."""
        return {self.renamed.get(name, name) for name in BINARY} == {one.name for one in self.classes}

    @property
    def renamed(self) -> dict[str, str]:
        """What each former name is called now."""
        return {former: one.name for one in self.classes for former in one.formerly}

    def check(self, label: str) -> None:
        """Raise `LabelError` where a label is none of the classes, by the names that they have or had."""
        if not any(label in one.names for one in self.classes):
            names = ", ".join(one.name for one in self.classes)
            raise LabelError(f"taxonomy {self.name!r} has no class {label[:80]!r}; it has {names}")


def publish_taxonomy(store: Store, name: str, classes: Sequence[LabelClass]) -> Taxonomy:
    """Write a taxonomy, or the next version of it, and return it; classes that are the newest version's make no other.

    A version carries on every class of the one before, under its name or with that among its `formerly`, so that no name
    ever means another class.

    Raises:
        LabelError: classes that cannot be, or a class of the version before is missing.
        PublishConflictError: somebody else published the version first.
    """
    try:
        check_taxonomy_name(name)
    except ValueError as error:
        raise LabelError(str(error)) from None
    before = _newest(store, name)
    made = Taxonomy(name=name, version=1 if before is None else before.version + 1, classes=_completed(_carried(classes, before), before))
    if before is not None and before.classes == made.classes:
        made = before
    else:
        try:
            store.swap(_key(name, made.version), _bytes(made), expected=None)
        except PublishConflictError:  # a refusal may be the second answer to a write that arrived
            if store.read(_key(name, made.version)) != _bytes(made):
                raise
    if before is None or before.version == 1:  # again where a kill came between the two
        store.write(f"{_KNOWN}{name}.json", json.dumps({"taxonomy": name}).encode())
    return made


def read_taxonomy(store: Store, name: str, *, known: Taxonomy | None = None) -> Taxonomy:
    """Return the newest version of a taxonomy.

    Args:
        store: the workspace.
        name: of the taxonomy.
        known: a version that was read before: only later ones are looked for.

    Raises:
        UnknownTaxonomyError: there is none of the name.
    """
    found = _newest(store, name, known) if _NAME.fullmatch(name) else None
    if found is None:
        raise UnknownTaxonomyError(
            f"there is no taxonomy {name[:80]!r} in {store.uri}; POST /v1/labels makes one, and `rayjobs labels create`"
        )
    return found


def taxonomy_names(store: Store) -> list[str]:
    """Return the names of the workspace's taxonomies, sorted."""
    return sorted(key.removeprefix(_KNOWN).removesuffix(".json") for key in store.list(_KNOWN))


def _newest(store: Store, name: str, known: Taxonomy | None = None) -> Taxonomy | None:
    """Versions are numbered without gaps, so that the newest is the last that is there."""
    newest = known
    while (found := store.read_tagged(key := _key(name, 1 if newest is None else newest.version + 1))) is not None:
        newest = _taxonomy(found.data, store.address(key))
    return newest


def _key(name: str, version: int) -> str:
    return f"{ROOT}{name}/taxonomy/{version:05}.json"


def _bytes(taxonomy: Taxonomy) -> bytes:
    return json.dumps(asdict(taxonomy), indent=1, sort_keys=True).encode()


def _taxonomy(data: bytes, address: str) -> Taxonomy:
    """Return what an object holds. Raises `DamagedError`."""
    try:
        fields = json.loads(data)
        classes = tuple(LabelClass(**{**one, "formerly": tuple(one["formerly"])}) for one in fields["classes"])
        return Taxonomy(name=fields["name"], version=fields["version"], classes=classes)
    except (ValueError, TypeError, KeyError, LabelError) as error:
        raise DamagedError(f"{address} is no version of a taxonomy ({error}); bring it back from a copy of the workspace") from None


def _carried(classes: Sequence[LabelClass], before: Taxonomy | None) -> list[LabelClass]:
    """Return the classes with all names that they had. Raises `LabelError` where one of before is missing."""
    carried = list(classes)
    for old in before.classes if before else ():
        heirs = [number for number, one in enumerate(carried) if old.names & one.names]
        if len(heirs) != 1 or old.name not in carried[heirs[0]].names:
            raise LabelError(
                f"class {old.name!r} of version {before.version if before else 0} must go on as one class; name it, or rename it with "
                f"formerly: [{old.name!r}] (`rayjobs labels create`: --formerly NEW={old.name})"
            )
        heir = carried[heirs[0]]
        carried[heirs[0]] = replace(heir, formerly=tuple(sorted((old.names | heir.names) - {heir.name})))
    return carried


def _completed(classes: Sequence[LabelClass], before: Taxonomy | None) -> tuple[LabelClass, ...]:
    """Give each class without one a key and a colour: those of the version before, or the first that is free."""
    known = {name: old for old in (before.classes if before else ()) for name in old.names}
    kept = [known.get(one.name) or next((known[name] for name in one.formerly if name in known), None) for one in classes]
    keys = {one.key for one in classes} | {old.key for old in kept if old}
    free = iter([key for key in _KEYS if key not in keys])
    return tuple(
        replace(
            one,
            key=one.key or (old.key if old and old.key not in {other.key for other in classes} else next(free, "")),
            colour=one.colour or (old.colour if old else _PALETTE[number % len(_PALETTE)]),
            description=one.description or (old.description if old else ""),
        )
        for number, (one, old) in enumerate(zip(classes, kept, strict=True))
    )
