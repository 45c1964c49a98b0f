"""The deployment that has a newly published index taken up: it looks at what is current, has it tried, and declares it to Ray Serve.

All processes get the version from Ray Serve as their `user_config`, those too that start later or again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import pydantic
import ray.serve

from rayjobs.serve.declared import have_taken_up, set_user_config
from rayjobs.serve.held import Target
from rayjobs.serve.shards import names_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ray.serve.handle import DeploymentHandle

    from rayjobs.serve.settings import AppSettings

_AGAIN_S = 60.0
"""Seconds until a version that was refused is tried again: what was wrong may have been a bucket that did not answer."""

_LOG = logging.getLogger(__name__)


FOLLOWERS = ("Ingress", "Encoder", "Watcher")
"""Deployments that are told of a version, once the shards have taken it up."""

_POLL_S = 0.2
_PATIENCE_S = 3600.0
"""Shards that have not taken a version up by then are not waited for: the ingress asks them anyway, and says what is wrong."""


class Watcher:
    """Watches one index; of one process, so that one version is declared at a time."""

    def __init__(self, settings: AppSettings, encoder: DeploymentHandle[Any]) -> None:
        """Watch nothing before `reconfigure` says what is served."""
        self._settings, self._encoder = settings, encoder
        self._target = Target(index_version="")
        self._refused: tuple[str, float] = ("", 0.0)
        self._one_at_a_time = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take note of what is served; never raises, since Ray Serve would end the process."""
        try:
            self._target = Target.model_validate(user_config)
        except pydantic.ValidationError:
            _LOG.exception("user_config %s is none of ours", user_config)

    async def check_health(self) -> None:
        """Begin to watch, and begin again where watching has ended; Ray Serve asks at the start and from time to time."""
        if self._settings.service.watch_s and (self._watching is None or self._watching.done()):
            self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._settings.service.watch_s)
            try:
                await self.refresh()
            except Exception:  # noqa: BLE001  the workspace or Ray Serve does not answer; what is served stays
                _LOG.exception("cannot look for a newly published index; trying again")

    async def refresh(self) -> dict[str, Any]:
        """Look at what is current, and return what all processes are to serve, a `Target`."""
        async with self._one_at_a_time:
            await self._look()
        return self._target.model_dump()

    async def _look(self) -> None:
        current = await asyncio.to_thread(self._settings.published.leads_to)
        if current == self._target.index_version:
            await self._declare(Target(index_version=current))  # what was refused is taken back
            self._refused = ("", 0.0)
            return
        if current is None or self._was_refused(current):
            return
        refusal = await self._encoder.refusal.remote(current)
        if refusal is None:
            await self._declare(Target(index_version=current))
        else:
            _LOG.error("index %s is refused: %s", current, refusal)
            self._refused = (current, time.monotonic())
            await self._declare(self._target.model_copy(update={"last_error": f"refused {current}: {refusal}"}))

    def _was_refused(self, version: str) -> bool:
        refused, when = self._refused
        return version == refused and time.monotonic() < when + _AGAIN_S

    async def _declare(self, target: Target) -> None:
        if target == self._target:
            return
        name, told = ray.serve.get_replica_context().app_name, target.model_dump()
        if shards := names_of(self._settings.service.shards):  # first, so that no request waits for one of their processes to load
            await asyncio.to_thread(set_user_config, name, shards, told)
            await _until(lambda: have_taken_up(name, shards, told))
        await asyncio.to_thread(set_user_config, name, FOLLOWERS, told)
        self._target = target


async def _until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and not await asyncio.to_thread(is_true):  # noqa: ASYNC110  Ray Serve calls nobody back
        await asyncio.sleep(_POLL_S)
