"""Searchers: deployments that hold a share of an index version's segments each, and what asks all of them as if they were one.

The metadata of all tiles stays with the ingress, which filters and merges, so that an answer is the same however many shards there are.
Ray Serve reads the types of methods' arguments, so that annotations here are not postponed.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ray.serve.handle import DeploymentHandle

from rayjobs.retrieval.manifest import IndexManifest, read_index_manifest
from rayjobs.retrieval.planner import Nearest, Task
from rayjobs.retrieval.shards import LocalShards, load_shards
from rayjobs.serve.answers import Answers
from rayjobs.serve.calls import answering
from rayjobs.serve.held import Held
from rayjobs.serve.masks import PackedMask, packed, unpacked
from rayjobs.serve.settings import AppSettings
from rayjobs.storage import Version

Item = TypeVar("Item")
Array = np.ndarray[Any, Any]
Part = tuple[int, Array]
"""Number of a segment, and rows within it."""
SentTask = tuple[Task, PackedMask | None]
"""A task without its mask, and that."""

_ANSWER_S = 60.0
"""A searcher that answers later is taken for lost; the request itself ends earlier, by `serve.request_timeout_s`."""
_LOAD_S = 3600.0
"""Likewise where it must fetch and check its segments first."""


class Share:
    """The segments of one index version that one searcher holds."""

    def __init__(self, version: str, shards: LocalShards) -> None:
        """Take loaded segments of an index version by name."""
        self.version, self.shards = version, shards


class Shard:
    """Searches every n-th segment of an index version."""

    def __init__(self, settings: AppSettings, number: int) -> None:
        """Hold no segment before `reconfigure` names a version.

        Args:
            settings: of the application.
            number: of the shard, from 0.
        """
        self._settings, self._number = settings, number
        self._held: Held[Share] = Held(self._load)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take up the segments of a version; see `Held.follow`."""
        await self._held.follow(user_config)

    async def hold(self, version: str) -> None:
        """Load the segments of an index version, unless they are there. Raises what loading raises."""
        await self._held.ensure(version)

    async def nearest(self, version: str, queries: Array, tasks: list[SentTask]) -> list[Nearest]:
        """Search some segments of an index version; see `retrieval.shards.Shards`. Segments are numbered within the shard."""
        share = await self._held.ensure(version)
        return await asyncio.to_thread(lambda: share.shards.nearest(queries, [_received(*task) for task in tasks]))

    async def vectors_of(self, version: str, parts: list[Part]) -> list[Array]:
        """Return vectors of some rows, numbered as for `nearest`."""
        share = await self._held.ensure(version)
        return await asyncio.to_thread(share.shards.vectors_of, parts)

    def _load(self, version: str) -> Share:
        found = self._settings.at(version)
        manifest = read_index_manifest(found.manifest, found.store.address(found.prefix))
        parts = self._settings.service.shards
        return Share(version, load_shards(found, manifest, self._settings.cache, part=self._number, parts=parts))


class RemoteShards:
    """The vectors of one index version, searched by the deployments that hold them: all asked at once, one request for each."""

    cost_ns = math.inf

    def __init__(self, version: Version, manifest: IndexManifest, _: Path, *, handles: Sequence[DeploymentHandle[Any]]) -> None:
        """Have every shard load its segments.

        Args:
            version: the index version.
            manifest: its manifest.
            handles: of the shards, in order of their numbers.

        Raises:
            IndexCorruptError: a file differs from the manifest.
            ServiceError: a shard does not answer.
        """
        self.dimension = manifest.dimension
        self._version, self._handles = version.version, handles
        _gathered([handle.hold.remote(self._version) for handle in handles], _LOAD_S)

    def nearest(self, queries: Array, tasks: Sequence[Task]) -> list[Nearest]:
        """Search some segments; see `retrieval.shards.Shards`. Raises `ServiceError` where a shard does not answer."""
        numbers = [task.number for task in tasks]
        within = [_sent(replace(task, number=task.number // len(self._handles))) for task in tasks]
        return self._scattered("nearest", numbers, within, queries)

    def vectors_of(self, parts: Sequence[Part]) -> list[Array]:
        """Return vectors of some rows; see `retrieval.shards.Shards`. Raises `ServiceError` where a shard does not answer."""
        numbers = [number for number, _ in parts]
        within = [(number // len(self._handles), rows) for number, rows in parts]
        return self._scattered("vectors_of", numbers, within)

    def _scattered(self, name: str, numbers: Sequence[int], items: Sequence[Item], *further: Any) -> list[Any]:
        """Ask each shard for the items of its segments, one request for each, and put what they answer in the items' order."""
        shards = [number % len(self._handles) for number in numbers]
        asked: dict[int, list[Item]] = {}
        for shard, item in zip(shards, items, strict=True):
            asked.setdefault(shard, []).append(item)
        methods = [getattr(self._handles[shard], name) for shard in asked]
        pending = [method.remote(self._version, *further, of_shard) for method, of_shard in zip(methods, asked.values(), strict=True)]
        found = {shard: iter(answer) for shard, answer in zip(asked, _gathered(pending, _ANSWER_S), strict=True)}
        return [next(found[shard]) for shard in shards]


def _sent(task: Task) -> SentTask:
    return replace(task, chosen=None), None if task.chosen is None else packed(task.chosen)


def _received(task: Task, mask: PackedMask | None) -> Task:
    return task if mask is None else replace(task, chosen=unpacked(mask))


def _gathered(pending: Sequence[Any], timeout_s: float) -> list[Any]:
    with answering("a searcher does not answer"):
        return [response.result(timeout_s=timeout_s) for response in pending]


def names_of(shards: int) -> list[str]:
    """Return the names of the shards' deployments; none where the ingress searches itself."""
    return [f"{Shard.__name__}{number}" for number in range(shards)] if shards > 1 else []


def open_answers(settings: AppSettings, version: str, shards: Sequence[DeploymentHandle[Any]] = ()) -> Answers:
    """Open an index version by name, to be searched by shards, or by this process where there are none.

    Raises:
        NotFoundError: it is not there.
        RetrievalError: it cannot be served; see `Answers` and `RemoteShards`.
    """
    load = partial(RemoteShards, handles=shards) if shards else load_shards
    return Answers(settings.at(version), load=load, cache=settings.cache, max_limit=settings.service.max_limit)
