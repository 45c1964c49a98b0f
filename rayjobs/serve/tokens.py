"""Tokens: who may do what. They come from the environment of the process that answers, and are kept nowhere else."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rayjobs.errors import ConfigError
from rayjobs.labels.events import check_person

if TYPE_CHECKING:
    from collections.abc import Mapping

Scope = Literal["read", "label", "write", "admin"]

READ: Scope = "read"
LABEL: Scope = "label"
WRITE: Scope = "write"
ADMIN: Scope = "admin"

VARIABLES: dict[str, frozenset[Scope]] = {
    "RAYJOBS_TOKEN": frozenset({READ, LABEL, WRITE, ADMIN}),
    "RAYJOBS_ADMIN_TOKENS": frozenset({READ, LABEL, WRITE, ADMIN}),
    "RAYJOBS_WRITE_TOKENS": frozenset({READ, LABEL, WRITE}),
    "RAYJOBS_READ_TOKENS": frozenset({READ}),
    "RAYJOBS_LABEL_TOKENS": frozenset({READ, LABEL}),
}
"""Variables that hold tokens, several between commas, and what each token of theirs may do."""

NAMED = "RAYJOBS_LABEL_TOKENS"
"""The variable whose tokens have a person's name before them: `anna:TOKEN,ben:TOKEN`."""

_BEARER = b"Bearer "


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who sent a request, as far as a token tells."""

    name: str
    """Of the token's sha256 the first 8 hexadecimal digits: fit for logs."""
    scopes: frozenset[Scope]
    """What it may do."""
    person: str | None = None
    """Who it is given to, as far as its variable says."""


class Tokens:
    """The tokens that let somebody in."""

    def __init__(self, scopes: Mapping[str, frozenset[Scope]], people: Mapping[str, str] | None = None) -> None:
        """Take the scopes of each token, and whose it is, where that is known; only digests are kept."""
        given = people or {}
        self.people = frozenset(given.values())
        """Everybody whom a token was given to."""
        digests = {hashlib.sha256(token.encode()).digest(): (granted, given.get(token)) for token, granted in scopes.items()}
        self._holders = [
            (digest, Holder(name=digest.hex()[:8], scopes=granted, person=person)) for digest, (granted, person) in digests.items()
        ]

    def holder(self, authorization: bytes) -> Holder | None:
        """Return who shows this header, None for nobody; how long it takes tells nothing of how near the header came."""
        shown = hashlib.sha256(authorization.removeprefix(_BEARER)).digest()
        found = [holder for digest, holder in self._holders if hmac.compare_digest(digest, shown)]
        return found[0] if found and authorization.startswith(_BEARER) else None


def tokens_of(environment: Mapping[str, str], *, required: bool) -> Tokens | None:
    """Return the tokens that let somebody in; None lets everybody in.

    Args:
        environment: of the process that answers.
        required: whether to refuse to go on without any.

    Raises:
        ConfigError: a token is empty or stands in two variables, one has no name and should, or one is required and there is none.
    """
    scopes: dict[str, frozenset[Scope]] = {}
    people: dict[str, str] = {}
    for variable, granted in VARIABLES.items():
        for given in _listed(environment, variable):
            token = _named(given, people) if variable == NAMED else given
            if token in scopes:
                raise ConfigError(f"a token of {variable} stands in another variable, too, or twice; give each token its scope once")
            scopes[token] = granted
    if required and not scopes:
        raise ConfigError(
            "a token (RAYJOBS_TOKEN, RAYJOBS_READ_TOKENS, ...) was set where the service was started from, but none is set where it runs, "
            "so that everybody could enter; put it into the environment of the cluster's nodes or of the submitted job, or unset it at the "
            "start"
        )
    return Tokens(scopes, people) if scopes else None


def _named(given: str, people: dict[str, str]) -> str:
    """Return the token of `NAME:TOKEN`, and note whose it is. Raises `ConfigError`, without the token in its words."""
    name, _, token = given.partition(":")
    try:
        people[token] = check_person(name) if token else ""
    except ValueError:
        token = ""
    if not token:
        raise ConfigError(f"an entry of {NAMED} is not NAME:TOKEN, with the name of a person; write for example anna:TOKEN,ben:TOKEN")
    return token


def _listed(environment: Mapping[str, str], variable: str) -> list[str]:
    if variable not in environment:
        return []
    tokens = [token.strip() for token in environment[variable].split(",")]
    if not all(tokens):
        raise ConfigError(f"{variable} is empty, or holds an empty token; give it a value, or unset it")
    return tokens
