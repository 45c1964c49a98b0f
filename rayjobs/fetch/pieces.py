"""What runs on a worker: ask a service for the tiles of one piece, check each by decoding it, and keep the answers as they came.

A piece is a table in the workspace with a row for each request: what was asked, when, with what outcome, and the body. It is written whole
every few seconds while answers come in, so that a worker that is killed loses no more than the last of them. What a piece holds is not
asked for again, but for those of its requests that failed, or whose answer the plan does not take for "no data" any more.
"""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from rayjobs.fetch.plan import FetchScene
from rayjobs.rasters.received import pixels_of
from rayjobs.rasters.tiled import TiledImage
from rayjobs.rasters.web import Answer, Asker, LocalPace, Pace, Patience
from rayjobs.storage import Store

OK, EMPTY, FAILED = "ok", "empty", "failed"
"""Outcomes: a picture, the word of the service that it has no data there, and no answer that will do."""

Place = tuple[int, int]
"""Row and column of a tile, as the service counts."""
Rows = dict[Place, dict[str, Any]]

KEPT_EVERY_S = 10.0
"""Seconds after which the answers that came in are kept, whether or not the piece is whole."""
_NOTHING = "the answer is empty"
_FAILURE = pa.struct({"at": pa.timestamp("us", tz="UTC"), "status": pa.int32(), "reason": pa.string()})
REQUESTS = pa.schema(
    {
        "scene_id": pa.string(),
        "row": pa.int32(),
        "col": pa.int32(),
        "url": pa.string(),
        "outcome": pa.string(),
        "status": pa.int32(),
        "at": pa.timestamp("us", tz="UTC"),
        "tries": pa.int32(),
        "bytes": pa.int64(),
        "failures": pa.list_(_FAILURE),
    }
)
"""Columns of the table of requests: outcome, HTTP status and moment of the last try; all tries, and when and why some failed."""
_PIECE = REQUESTS.append(pa.field("body", pa.binary()))


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPlan:
    """What all pieces of a job have in common."""

    store: Store
    prefix: str
    """Of the artefact in the workspace, ending in `/`."""
    patience: Patience
    threads: int
    """Requests under way at once on one worker."""
    empty_statuses: tuple[int, ...]
    pace: Any
    """Handle of the actor that sets the pace of the whole job, or a pace of this process."""


class DistantPace:
    """The pace of a whole job, set by an actor."""

    def __init__(self, actor: Any) -> None:
        """Take the handle of the actor, whose methods are those of `LocalPace`."""
        self._actor = actor

    def reserve(self) -> float | None:
        """Return how many seconds to wait before the next request; None where the service was given up."""
        turn: float | None = ray.get(self._actor.reserve.remote())
        return turn

    def hold(self, seconds: float) -> None:
        """Have everybody wait."""
        ray.get(self._actor.hold.remote(seconds))

    def note(self, *, answered: bool) -> None:
        """Learn whether a request got an answer in the end."""
        ray.get(self._actor.note.remote(answered=answered))


def fetch_piece(entry: Mapping[str, Any], *, plan: FetchPlan, scenes: Mapping[str, FetchScene]) -> dict[str, Any]:
    """Make sure that a piece lies in the workspace, as complete as the service allows.

    Args:
        entry: `scene_id` and `piece` (its number).
        plan: what all pieces share.
        scenes: by id.

    Returns:
        `scene_id`, `piece`, and how many requests were `asked` now, and have `failed`.
    """
    scene = scenes[entry["scene_id"]]
    key = piece_key(plan.prefix, scene, entry["piece"])
    found: Rows = {(row["row"], row["col"]): row for row in read_piece(plan.store, key)}
    wanted = [place for place in scene.tiles(entry["piece"]) if place not in found or not _will_do(found[place], plan.empty_statuses)]
    if wanted:
        pace: Pace = plan.pace if isinstance(plan.pace, LocalPace) else DistantPace(plan.pace)
        with Asker(plan.patience, pace) as asker, ThreadPoolExecutor(min(plan.threads, len(wanted))) as pool:
            ask = functools.partial(_asked, scene, asker, plan.empty_statuses)
            for rows in _as_they_come(pool, ask, wanted):
                found |= {place: _after(found.get(place), row) for place, row in rows.items()}
                plan.store.write(key, _parquet([found[place] for place in scene.tiles(entry["piece"]) if place in found]))
    failed = sum(row["outcome"] == FAILED for row in found.values())
    return {"scene_id": scene.scene_id, "piece": entry["piece"], "asked": len(wanted), "failed": failed}


def _as_they_come(pool: ThreadPoolExecutor, ask: Callable[[Place], dict[str, Any]], wanted: Sequence[Place]) -> Iterator[Rows]:
    """Yield, every `KEPT_EVERY_S` and at the end, the rows of requests that have ended since."""
    asked = {pool.submit(ask, place): place for place in wanted}
    pending = set(asked)
    while pending:
        ended, pending = wait(pending, timeout=KEPT_EVERY_S)
        if ended:
            yield {asked[request]: request.result() for request in ended}


def piece_key(prefix: str, scene: FetchScene, piece: int) -> str:
    """Return where a piece lies in the workspace."""
    return f"{prefix}{scene.pieces_folder}{piece:06d}.parquet"


def read_piece(store: Store, key: str) -> list[dict[str, Any]]:
    """Return the rows of a piece; none where it is not there."""
    left = store.read_tagged(key)
    return pq.read_table(io.BytesIO(left.data)).to_pylist() if left else []


def read_requests(store: Store, key: str) -> pa.Table:
    """Return the requests of a piece as `REQUESTS`, without the bodies, which may be many; none where it is not there."""
    if store.size(key) is None:
        return REQUESTS.empty_table()
    with tempfile.TemporaryDirectory(prefix="rayjobs-fetch-") as folder:
        return pq.read_table(store.fetch(key, Path(folder)), columns=REQUESTS.names)


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    sink = io.BytesIO()
    # what services send is compressed already
    pq.write_table(pa.Table.from_pylist(list(rows), schema=_PIECE), sink, compression="NONE")
    return sink.getvalue()


def _will_do(row: Mapping[str, Any], empty: Sequence[int]) -> bool:
    """Whether an answer that lies there is one by these statuses, too: an earlier command may have had others."""
    return row["outcome"] == OK or (row["outcome"] == EMPTY and row["status"] in empty)


def _after(before: Mapping[str, Any] | None, row: dict[str, Any]) -> dict[str, Any]:
    """Add what an earlier command tried, if one did, to what became of a request now."""
    if before is None:
        return row
    refused = [{"at": before["at"], "status": before["status"], "reason": _NOTHING}] if before["outcome"] == EMPTY else []
    return {**row, "tries": before["tries"] + row["tries"], "failures": [*before["failures"], *refused, *row["failures"]]}


def _asked(scene: FetchScene, asker: Asker, empty: Sequence[int], place: Place) -> dict[str, Any]:
    row, col = place
    url = scene.image.address(row, col)
    answer = asker.ask(url, check=functools.partial(_wrong, scene.image, empty))
    body = answer.body or b""
    return {
        "scene_id": scene.scene_id,
        "row": row,
        "col": col,
        "url": url,
        "outcome": _outcome(answer),
        "status": answer.status,
        "at": answer.at,
        "tries": answer.tries,
        "bytes": len(body),
        "failures": [{"at": failure.at, "status": failure.status, "reason": failure.reason} for failure in answer.failures],
        "body": body,
    }


def _outcome(answer: Answer) -> str:
    if answer.body is None:
        return FAILED
    return OK if answer.body else EMPTY


def _wrong(image: TiledImage, empty: Sequence[int], status: int, body: bytes) -> str | None:
    """Say what is wrong with an answer; None where it is a whole tile, or the word that there is no data."""
    if not body:
        return None if status in empty else _NOTHING
    try:
        pixels_of(body, bands=image.bands, height=image.tile_height, width=image.tile_width)
    except ValueError as error:
        return str(error)
    return None
