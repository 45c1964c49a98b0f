"""Of what is fetched: which requests failed, and the version that names the files, their STAC items and animated pictures."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayjobs.fetch.animate import animated
from rayjobs.fetch.cogs import Summary, summary
from rayjobs.fetch.items import item_collection
from rayjobs.fetch.pieces import FAILED, REQUESTS, FetchPlan, piece_key, read_requests
from rayjobs.fetch.plan import FetchScene, version_name, when
from rayjobs.storage import FileDigest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rayjobs.experiment import Experiment
    from rayjobs.fetch.section import FetchSection
    from rayjobs.storage import Artefact, Version

ITEMS_FILE, REQUESTS_FILE = "items.json", "requests.parquet"
_ANIMATIONS = "animations/"


@dataclass(frozen=True)
class Fetched:
    """What the workspace holds of a plan's scenes."""

    scenes: Sequence[FetchScene]
    summaries: Sequence[Mapping[str, Any]]
    """What `assemble` told of each complete scene, in the order of `scenes`."""
    requests: pa.Table
    """All requests (`REQUESTS`) that were made for them."""

    @cached_property
    def files(self) -> dict[str, FileDigest]:
        """The file of each complete scene, by scene."""
        return {told["scene_id"]: FileDigest(**told["file"]) for told in self.summaries}

    def missing(self) -> list[dict[str, Any]]:
        """Return the requests that failed: `scene_id`, `url`, `status`, `tries`, `at` and `reason`."""
        lost = self.requests.filter(pc.equal(self.requests["outcome"], FAILED)).to_pylist()
        return [
            {
                **{name: row[name] for name in ("scene_id", "url", "status", "tries")},
                "at": row["at"].isoformat(),
                "reason": row["failures"][-1]["reason"],
            }
            for row in lost
        ]


def read_state(plan: FetchPlan, scenes: Sequence[FetchScene], known: Mapping[str, Summary]) -> Fetched:
    """Read what the workspace holds of some scenes; `known` are summaries that were read before, by scene."""
    done = [known.get(scene.scene_id) or summary(plan, scene) for scene in scenes]
    requests = [found[1] if found else _requests_so_far(plan, scene) for scene, found in zip(scenes, done, strict=True)]
    return Fetched(scenes, [found[0] for found in done if found], pa.concat_tables(requests))


def plan_name(scenes: Sequence[FetchScene], section: FetchSection) -> str:
    """Return a name of the plan, whatever its files hold."""
    return version_name(scenes, _look(section))


def _version_of(state: Fetched, section: FetchSection) -> str:
    """Return the version's name, which is also of the files: what is fetched anew may have other pixels, and no version changes."""
    return version_name(state.scenes, _look(section), [state.files[scene_id].sha256 for scene_id in sorted(state.files)])


def published(state: Fetched, experiment: Experiment, artefact: Artefact) -> Version:
    """Publish a version of complete scenes; return it, or the current one if that is the same."""
    name, standing = _version_of(state, experiment.fetch), artefact.current()
    if standing is not None and standing.version == name:
        return standing
    draft = artefact.draft(name)
    draft.add(state.files.values())
    draft.write(REQUESTS_FILE, table_bytes(state.requests))
    draft.write(ITEMS_FILE, json.dumps(item_collection(state.scenes, state.files)).encode())
    addresses = {scene_id: artefact.store.address(file.key(draft.prefix)) for scene_id, file in state.files.items()}
    for picture, data in _animations(experiment.fetch, state.scenes, addresses):
        draft.write(picture, data)
    draft.write("experiment.yaml", experiment.to_yaml().encode())
    counts = {name: sum(told[name] for told in state.summaries) for name in ("requests", "empty", "pixels")}
    return draft.publish({"parents": {}, "counts": {"scenes": len(state.scenes), **counts}})


def animations_of(version: Version) -> dict[str, str]:
    """Return the address of each animated picture of a version, by layer."""
    files = [file for file in version.files if file.name.startswith(_ANIMATIONS)]
    return {PurePosixPath(file.name).stem: version.store.address(file.key(version.prefix)) for file in files}


def table_bytes(table: pa.Table) -> bytes:
    """Return a table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _look(section: FetchSection) -> str:
    return f"{section.animation} {section.animation_height} {section.frames_per_second}"


def _requests_so_far(plan: FetchPlan, scene: FetchScene) -> pa.Table:
    pieces = [read_requests(plan.store, piece_key(plan.prefix, scene, piece)) for piece in range(scene.pieces)]
    return pa.concat_tables([REQUESTS.empty_table(), *pieces])


def _animations(section: FetchSection, scenes: Sequence[FetchScene], addresses: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of an animated picture of each layer and level; of one whose area has several parts, of each part."""
    if section.animation == "none":
        return
    parts: dict[str, list[FetchScene]] = {}
    for scene in sorted(scenes, key=lambda scene: (when(scene) or "", scene.scene_id)):
        parts.setdefault(scene.series, []).append(scene)
    for part, of_part in parts.items():
        frames = [addresses[scene.scene_id] for scene in of_part]
        data = animated(frames, form=section.animation, height=section.animation_height, frames_per_second=section.frames_per_second)
        yield f"{_ANIMATIONS}{part}.{section.animation}", data
