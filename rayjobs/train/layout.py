"""Whether what a checkpoint or a mining table holds fits the run that would go on from it: both are hostile until looked at here."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from rayjobs.errors import CheckpointError
from rayjobs.metric.section import MiningSection
from rayjobs.train.batches import EpochPlan
from rayjobs.train.mine import SCHEMA

FORMAT = 2
"""Number of the layout of `state.pt`; another number is another layout."""
_COUNTS = ("epoch", "step", "failed_uploads", "stalled")
_INTEGERS = (torch.int32, torch.int64)


def check_counts(saved: Mapping[str, Any]) -> None:
    """Check the format of `state.pt`, and how far it says that the run is.

    Raises:
        CheckpointError: it is of another format, or a number is missing or none.
    """
    found = saved.get("format")
    if found != FORMAT:
        raise CheckpointError(f"state.pt has format {found!r:.80}, and this program reads {FORMAT}; take another checkpoint")
    for name in _COUNTS:
        _require(_is_count(saved.get(name)), name, "a number of 0 or more")
    _require(isinstance(saved.get("least"), float) and not math.isnan(saved["least"]), "least", "a number")
    _require(saved.get("generation") is None or _is_count(saved["generation"]), "generation", "a number of 0 or more, or none")


def check_fits(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], optimizer: torch.optim.Optimizer, moments: Sequence[str], *, tiles: int
) -> None:
    """Check that `state.pt` can be taken up: nothing is missing, superfluous or of another shape.

    Args:
        saved: `state.pt`, whose counts have been checked.
        wanted: what this run keeps as it begins.
        optimizer: of this run.
        moments: what it keeps of a parameter; see `rayjobs.train.optimizers`.
        tiles: training tiles, to which batches and clusters point.

    Raises:
        CheckpointError: it cannot; says what is wrong.
    """
    averaged = [name for name in ("module", "average") if name in wanted]
    for name in (*averaged, "objective"):
        _check_alike(saved.get(name), wanted[name], name)
    for name in averaged:  # the weights of `model.safetensors` are looked at where they are read
        _require(all_finite(saved[name]), name, "finite")
    for name in {"loss", "projector"} & saved["objective"].keys():
        _require(all_finite(saved["objective"][name]), f"objective.{name}", "finite")
    _check_optimizer(saved.get("optimizer"), optimizer, moments)
    _check_batches(saved.get("batches"), int(saved["step"]), tiles)
    _check_clusters(saved.get("clusters"), tiles)


def all_finite(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether all numbers are finite; waits for the device once."""
    each = [torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point()]
    return not each or bool(torch.stack(each).all())


def _require(holds: bool, name: str, wanted: str) -> None:  # noqa: FBT001  what must hold
    if not holds:
        raise CheckpointError(f"state.pt: {name[:80]} is not {wanted}; take another checkpoint")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _check_alike(found: Any, wanted: Any, name: str) -> None:
    """Compare two nested mappings of tensors by keys, shapes and types."""
    if isinstance(wanted, Mapping):
        _require(isinstance(found, Mapping) and found.keys() == wanted.keys(), name, "what this run keeps under that name")
        for key, value in wanted.items():
            _check_alike(found[key], value, f"{name}.{key}")
    elif isinstance(wanted, torch.Tensor):
        fits = isinstance(found, torch.Tensor) and found.shape == wanted.shape and found.dtype == wanted.dtype
        _require(fits, name, f"{wanted.dtype} {tuple(wanted.shape)}")
    else:
        _require(type(found) is type(wanted), name, f"of type {type(wanted).__name__}")


def _check_optimizer(found: Any, optimizer: torch.optim.Optimizer, moments: Sequence[str]) -> None:
    _require(isinstance(found, Mapping) and found.keys() == {"state", "param_groups"}, "optimizer", "the state of an optimizer")
    ours, theirs = optimizer.state_dict()["param_groups"], found["param_groups"]
    _require(isinstance(theirs, Sequence) and len(theirs) == len(ours), "optimizer.param_groups", f"{len(ours)} groups")
    for mine, group in zip(ours, theirs, strict=True):
        _require(
            isinstance(group, Mapping) and group.get("params") == mine["params"], "optimizer.param_groups", "over this run's parameters"
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    _require(isinstance(found["state"], Mapping), "optimizer.state", "a mapping")
    for index, kept in found["state"].items():
        _require(_is_count(index) and index < len(parameters), "optimizer.state", "over this run's parameters")
        _check_moments(kept, parameters[index], moments, f"optimizer.state.{index}")


def _check_moments(found: Any, parameter: torch.Tensor, moments: Sequence[str], name: str) -> None:
    fits = isinstance(found, Mapping) and found.keys() == set(moments) and all(isinstance(part, torch.Tensor) for part in found.values())
    _require(fits, name, f"tensors {', '.join(moments)}")
    shapes = {key: () if key == "step" else tuple(parameter.shape) for key in moments}
    _require(all(tuple(found[key].shape) == shape for key, shape in shapes.items()), name, f"of shapes {shapes}")


def _is_integers(found: Any, shape: Sequence[int] | None, dimensions: int) -> bool:
    fits = isinstance(found, torch.Tensor) and found.dtype in _INTEGERS and found.dim() == dimensions and found.numel() > 0
    return fits and (shape is None or tuple(found.shape) == tuple(shape))


def _lies_in(found: torch.Tensor, least: int, below: int) -> bool:
    return bool((found >= least).all() and (found < below).all())


def _check_batches(found: Any, step: int, tiles: int) -> None:
    if not step:
        return
    fits = isinstance(found, Mapping) and {"members", "groups"} <= found.keys() <= set(EpochPlan.__dataclass_fields__)
    _require(fits and _is_number(found.get("joined_share") or 0.0), "batches", "those of an epoch under way")
    members = found["members"]
    _require(_is_integers(members, None, 2) and len(members) >= step, "batches.members", "a row of tiles for each step")
    _require(_lies_in(members, 0, tiles), "batches.members", f"below {tiles}, the number of training tiles")
    _require(_is_integers(found["groups"], members.shape, 2), "batches.groups", f"integers {tuple(members.shape)}")
    clusters = found.get("clusters")
    _require(clusters is None or _is_integers(clusters, members.shape, 2), "batches.clusters", f"integers {tuple(members.shape)}, or none")


def _check_clusters(found: Any, tiles: int) -> None:
    if found is None:
        return
    names = {"centres", "classes", "of_item", "variance"}
    _require(isinstance(found, Mapping) and found.keys() == names, "clusters", f"{', '.join(sorted(names))}")
    centres = found["centres"]
    fits = isinstance(centres, torch.Tensor) and centres.dim() == 2 and centres.dtype == torch.float32  # noqa: PLR2004  rows and columns
    _require(fits and all_finite({"": centres}), "clusters.centres", "finite rows")
    _require(_is_integers(found["classes"], (len(centres),), 1), "clusters.classes", "one for each centre")
    fits = _is_integers(found["of_item"], (tiles,), 1) and _lies_in(found["of_item"], -1, len(centres))
    _require(fits, "clusters.of_item", "a cluster for each training tile")
    _require(_is_number(found["variance"]), "clusters.variance", "a number")


def read_mined(data: bytes, tile_ids: Sequence[str], settings: MiningSection) -> pa.Table:
    """Read a mining table, and check that it speaks of this run's tiles.

    Args:
        data: of `mined.parquet`.
        tile_ids: of the training tiles.
        settings: how many negatives and positives a tile may have.

    Raises:
        CheckpointError: it is no mining table, or one of another run; says what is wrong.
    """
    most = {"negative": settings.negatives, "positive": settings.positives}
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        _require_table(file.schema_arrow.equals(SCHEMA), f"the columns {', '.join(SCHEMA.names)}")
        _require_table(
            file.metadata.num_rows <= len(tile_ids) * sum(most.values()), "at most as many rows as are mined"
        )  # before it is read
        table = file.read()
    except pa.ArrowException as error:
        raise CheckpointError(f"mined.parquet cannot be read ({error}); take another generation") from error
    ids = pa.array(tile_ids, pa.string())
    _require_table(not any(column.null_count for column in table.columns), "a value in each place")
    _require_table(all(_all(pc.is_in(table[name], value_set=ids)) for name in ("anchor_id", "candidate_id")), "ids of training tiles")
    _require_table(_all(pc.not_equal(table["anchor_id"], table["candidate_id"])), "no tile as its own candidate")
    of_kinds = [pc.and_(pc.equal(table["kind"], kind), pc.less_equal(table["rank"], count)) for kind, count in most.items()]
    _require_table(_all(pc.and_(pc.or_(*of_kinds), pc.greater_equal(table["rank"], 1))), "the kinds and ranks that mining gives")
    return table


def _require_table(holds: bool, wanted: str) -> None:  # noqa: FBT001  what must hold
    if not holds:
        raise CheckpointError(f"mined.parquet does not have {wanted}; take another generation")


def _all(true: pa.ChunkedArray) -> bool:
    return bool(pc.all(true, min_count=0).as_py())
