"""Tokens: who may do what. They come from the environment of the process that answers, and are kept nowhere else."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rayjobs.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

Scope = Literal["read", "write", "admin"]

READ: Scope = "read"
WRITE: Scope = "write"
ADMIN: Scope = "admin"

VARIABLES: dict[str, frozenset[Scope]] = {
    "RAYJOBS_TOKEN": frozenset({READ, WRITE, ADMIN}),
    "RAYJOBS_ADMIN_TOKENS": frozenset({READ, WRITE, ADMIN}),
    "RAYJOBS_WRITE_TOKENS": frozenset({READ, WRITE}),
    "RAYJOBS_READ_TOKENS": frozenset({READ}),
}
"""Variables that hold tokens, several between commas, and what each token of theirs may do."""

_BEARER = b"Bearer "


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who sent a request, as far as a token tells."""

    name: str
    """Of the token's sha256 the first 8 hexadecimal digits: fit for logs."""
    scopes: frozenset[Scope]
    """What it may do."""


class Tokens:
    """The tokens that let somebody in."""

    def __init__(self, scopes: Mapping[str, frozenset[Scope]]) -> None:
        """Take the scopes of each token; only digests are kept."""
        digests = {hashlib.sha256(token.encode()).digest(): granted for token, granted in scopes.items()}
        self._holders = [(digest, Holder(name=digest.hex()[:8], scopes=granted)) for digest, granted in digests.items()]

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
        ConfigError: a token is empty or stands in two variables, or one is required and there is none.
    """
    scopes: dict[str, frozenset[Scope]] = {}
    for variable, granted in VARIABLES.items():
        for token in _listed(environment, variable):
            if token in scopes:
                raise ConfigError(f"a token of {variable} stands in another variable, too, or twice; give each token its scope once")
            scopes[token] = granted
    if required and not scopes:
        raise ConfigError(
            "a token (RAYJOBS_TOKEN, RAYJOBS_READ_TOKENS, ...) was set where the service was started from, but none is set where it runs, "
            "so that everybody could enter; put it into the environment of the cluster's nodes or of the submitted job, or unset it at the "
            "start"
        )
    return Tokens(scopes) if scopes else None


def _listed(environment: Mapping[str, str], variable: str) -> list[str]:
    if variable not in environment:
        return []
    tokens = [token.strip() for token in environment[variable].split(",")]
    if not all(tokens):
        raise ConfigError(f"{variable} is empty, or holds an empty token; give it a value, or unset it")
    return tokens
