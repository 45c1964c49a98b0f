"""The driver's side of `rayjobs embed`: an embedding table of a set by an encoder, published in the workspace."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from rayjobs.cluster.session import joined, wants_gpu
from rayjobs.embed.encode import METADATA_KEY, Encode
from rayjobs.embed.encoder import check_fits, chosen_encoder, tell_encoder
from rayjobs.errors import FingerprintError
from rayjobs.models.checkpoint import from_files
from rayjobs.storage import Artefact, Draft, FileDigest, Version

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayjobs.console import Console, Stage
    from rayjobs.experiment import Experiment

_FORMAT = 2
"""Raised when the same set and encoder would give another table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What `rayjobs embed` tells at its end."""

    version: str
    encoder_fingerprint: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """An embedding table in memory, rows sorted by tile id."""

    table: pa.Table
    """The tiles' columns, without the vectors."""
    vectors: np.ndarray[Any, np.dtype[np.float32]]
    """(rows, dim) float32."""
    fingerprint: str
    """Of the encoder that made them."""
    distance: Literal["cosine", "euclidean"]
    """What the vectors are compared with."""


def preview(experiment: Experiment) -> dict[str, Any]:
    """Return what embedding will take, and whether it was done already."""
    workspace = experiment.open_workspace()
    workspace.store.check()
    source = workspace.set.require("run `rayjobs sample` first")
    encoder = chosen_encoder(experiment)
    splits = experiment.index.splits
    tiles = tiles_of(source, splits)
    spec = from_files(**encoder.read()).spec
    check_fits(spec, source)
    chip_bytes = sum(entry.size for entry in source.files if entry.name.startswith("chips/"))
    current = workspace.embeddings().current()
    return {
        "encoder": encoder.words,
        "tiles": tiles,
        "bytes_to_read": chip_bytes,
        "table_bytes": tiles * spec.dim * 4,
        "published_already": current is not None and current.version == table_version(source, encoder.fingerprint, splits),
        "cautions": list(encoder.cautions),
    }


def run(experiment: Experiment, console: Console) -> Result:
    """Embed the experiment's set with its encoder."""
    workspace = experiment.open_workspace()
    workspace.store.check()
    source = workspace.set.require("run `rayjobs sample` first")
    encoder = chosen_encoder(experiment)
    tell_encoder(encoder, console, "embed")
    with joined(experiment.ray, workspace=workspace.store.uri, shared=workspace.shared, say=console.say):
        gpu, splits = wants_gpu(experiment.ray), experiment.index.splits
        version = embed(source, encoder.read(), workspace.embeddings(), console, gpu=gpu, splits=splits)
    return Result(
        version=version.version,
        encoder_fingerprint=version.manifest["encoder_fingerprint"],
        rows=version.manifest["counts"]["rows"],
    )


def embed(
    source: Version,
    encoder: Mapping[str, bytes],
    target: Artefact,
    console: Console,
    *,
    gpu: bool,
    splits: Sequence[str] | None = None,
    only: pa.Table | None = None,
    stage: str = "embed",
) -> Version:
    """Embed a set and publish the table; one that was published already is returned as it is.

    Args:
        source: the set.
        encoder: `model_json` and `tensors` of the encoder.
        target: where to publish.
        console: shows progress.
        gpu: whether each worker asks for a GPU.
        splits: parts of the set to embed; None for all tiles.
        only: rows of the set's tile table, sorted by `tile_id`, to embed in place of all tiles of `splits`; at least one.
        stage: what the progress is called.

    Raises:
        ConfigError: the encoder takes other pixels than the set has.
    """
    loaded = from_files(**encoder)
    check_fits(loaded.spec, source)
    digest = table_version(source, loaded.fingerprint, splits, only)
    current = target.current()
    if current and current.version == digest:
        return current
    draft = target.draft(digest)
    with console.stage(stage, tiles_of(source, splits) if only is None else only.num_rows, "tiles") as shown:
        reports = _encode(source, encoder, draft, shown, gpu=gpu, splits=splits, only=only)
    draft.add(FileDigest(**report["digest"]) for report in reports)
    return draft.publish(
        {
            "parents": {"set": f"{source.manifest['name']}/{source.version}"},
            "encoder_fingerprint": loaded.fingerprint,
            "distance": loaded.spec.distance,
            "counts": {"rows": sum(int(report["rows"]) for report in reports)},
            "rows_by_part": {report["digest"]["name"]: int(report["rows"]) for report in reports},
        }
    )


def _encode(
    source: Version,
    encoder: Mapping[str, bytes],
    draft: Draft,
    shown: Stage,
    *,
    gpu: bool,
    splits: Sequence[str] | None,
    only: pa.Table | None,
) -> list[dict[str, Any]]:
    numbers = range(source.manifest["shards"]) if only is None else sorted(only["shard"].unique().to_pylist())
    shards = [{"shard": number} for number in numbers]
    actors = max(1, int(ray.cluster_resources().get("GPU" if gpu else "CPU", 1)))
    parts = ray.data.from_items(shards, override_num_blocks=len(shards)).map(
        Encode,  # type: ignore[arg-type]  # Ray takes a class whose instances are called, too
        fn_constructor_kwargs={
            "files": ray.put(dict(encoder)),
            "source": source,
            "store": draft.artefact.store,
            "prefix": draft.prefix,
            "splits": splits,
            "only": None if only is None else ray.put(only["tile_id"].combine_chunks()),
        },
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(actors, len(shards))),
        num_cpus=1,
        num_gpus=1 if gpu else None,
        max_restarts=2,
        max_task_retries=2,
    )
    reports: list[dict[str, Any]] = []
    for report in parts.iter_rows():
        reports.append(report)
        shown.advance(int(report["rows"]))
    return reports


def table_version(source: Version, fingerprint: str, splits: Sequence[str] | None, only: pa.Table | None = None) -> str:
    """Return the name of the version that an encoder's table of a set, or of `only` some of its tiles, has."""
    digest = hashlib.sha256(f"{_FORMAT} {source.version} {fingerprint} {sorted(splits or ())}".encode())
    if only is not None:
        digest.update("\n".join(["", *only["tile_id"].to_pylist()]).encode())
    return digest.hexdigest()[:16]


def tiles_of(source: Version, splits: Sequence[str] | None) -> int:
    """Return how many tiles of a set are in some splits (None: all)."""
    counts = source.manifest["counts"]
    return int(counts["kept"]) if splits is None else sum(int(counts["by_split"].get(split, 0)) for split in splits)


def read_embeddings(version: Version) -> Embeddings:
    """Read an embedding table whole.

    Raises:
        FingerprintError: a part was made by another encoder than the manifest names.
    """
    tables = [_checked_part(version, entry.name) for entry in version.files]
    table = pa.concat_tables(tables).sort_by("tile_id").combine_chunks()
    vectors = table["embedding"].combine_chunks()
    dim = vectors.type.list_size
    return Embeddings(
        table=table.drop_columns(["embedding"]),
        vectors=vectors.flatten().to_numpy().reshape(-1, dim),
        fingerprint=version.manifest["encoder_fingerprint"],
        distance=version.manifest["distance"],
    )


def _checked_part(version: Version, name: str) -> pa.Table:
    table = pq.read_table(io.BytesIO(version.read(name)))
    found = (table.schema.metadata or {}).get(METADATA_KEY, b"").decode()
    if found != version.manifest["encoder_fingerprint"]:
        raise FingerprintError(
            f"{version.store.address(version.prefix + name)} was made by encoder {found or 'unknown'}; run `rayjobs embed` again"
        )
    return table.replace_schema_metadata(None)
