"""The index versions that a process holds: the one it answers from, taken up whole or not at all, and the one before it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import pydantic

from rayjobs.errors import PinnedVersionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_LOG = logging.getLogger(__name__)


class Target(pydantic.BaseModel):
    """What all processes of the service are to serve; the `user_config` of its deployments."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    index_version: str
    """Name of the index version."""
    last_error: str | None = None
    """Why a later version is not taken up."""


class Versioned(Protocol):
    """Something that was loaded from one index version."""

    @property
    def version(self) -> str:
        """Name of the index version."""


Loaded = TypeVar("Loaded", bound=Versioned)


class Held(Generic[Loaded]):
    """What was loaded from at most two index versions, and from as many more that somebody asks for who is ahead or behind.

    Readers take one reference and use it to their end: `follow` assigns another and changes nothing that was loaded.
    """

    def __init__(self, load: Callable[[str], Loaded]) -> None:
        """Hold nothing yet.

        Args:
            load: from the name of a version, in another thread; raises where the version cannot be served.
        """
        self._load, self._one_at_a_time = load, asyncio.Lock()
        self._loaded: tuple[Loaded, ...] = ()
        self._asked_for: tuple[Loaded, ...] = ()
        self.last_error: str | None = None
        """Why a version that was asked for is not served."""

    @property
    def current(self) -> Loaded:
        """What is served now."""
        return self._loaded[0]

    @property
    def versions(self) -> list[str]:
        """The versions that a request may pin, the current one first."""
        return [loaded.version for loaded in self._loaded]

    def pinned(self, version: str | None) -> Loaded:
        """Return what is served to a request that pins a version, or None.

        Raises:
            PinnedVersionError: that version is not held.
        """
        if version is None:
            return self.current
        found = _of(version, self._loaded)
        if found is None:
            raise PinnedVersionError(f"index version {version[:80]!r} is not served; {self.current.version} is: search again without a pin")
        return found

    async def follow(self, user_config: Mapping[str, object]) -> None:
        """Take up the version of a deployment's `user_config`; on any failure keep the one that is served.

        Never raises once something is served: Ray Serve would end the process.

        Raises:
            Exception: the first version cannot be served.
        """
        try:
            target = Target.model_validate(user_config)
            async with self._one_at_a_time:
                await self._take_up(target.index_version)
            self.last_error = target.last_error
        except Exception as error:
            if not self._loaded:
                raise
            _LOG.exception("a version is refused; %s is served still", self.current.version)
            self.last_error = f"refused {user_config.get('index_version')}: {error}"

    async def ensure(self, version: str) -> Loaded:
        """Return what was loaded from a version that another process serves; what this one is to serve stays as it is.

        Raises:
            Exception: it cannot be loaded.
        """
        if (known := _of(version, (*self._loaded, *self._asked_for))) is not None:
            return known
        async with self._one_at_a_time:
            loaded = await self._get(version)
            if loaded not in (*self._loaded, *self._asked_for):
                self._asked_for = (loaded, *self._asked_for[:1])
        return loaded

    async def _take_up(self, version: str) -> None:
        if version in self.versions[:1]:
            return
        loaded = await self._get(version)
        self._loaded = (loaded, *self._loaded[:1])
        self._asked_for = tuple(other for other in self._asked_for if other is not loaded)

    async def _get(self, version: str) -> Loaded:
        known = _of(version, (*self._loaded, *self._asked_for))
        return known if known is not None else await asyncio.to_thread(self._load, version)


def _of(version: str, loaded: Sequence[Loaded]) -> Loaded | None:
    return next((one for one in loaded if one.version == version), None)
