"""The encoder of an index: what its vectors are like, and whether it still makes them of the same tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rayjobs.doctor.checks import Check, caution, fault, ok
from rayjobs.doctor.searching import SAME
from rayjobs.embed.encode import CANONICAL_BATCH
from rayjobs.embed.encoder import chosen_encoder
from rayjobs.embed.stack import stack
from rayjobs.models.checkpoint import from_files
from rayjobs.retrieval.kinds import least_cosine

if TYPE_CHECKING:
    from rayjobs.doctor.opened import Opened, Pixels
    from rayjobs.experiment import Experiment
    from rayjobs.models.checkpoint import Checkpointed

Array = np.ndarray[Any, Any]

LEAST_COSINE = 0.999
"""Between a stored vector and the same tile's embedding made anew, as the service asks for before it serves it; see `least_cosine`."""
_MOST_VECTORS = 200_000
_UNIT_TOLERANCE = 1e-3
"""As segments are built with."""
_COMPARED = 2000
"""Vectors by which collapse is told."""
_FEWEST = 30
_LOWEST_RANK, _LOW_RANK = 2.0, 4.0
_TRAIN = "train anew with a lower --train.learning_rate, harder or more negatives (miner, mining), or another loss"


def length(opened: Opened) -> Check:
    """See whether vectors are finite and of length 1."""
    vectors = opened.drawn(_MOST_VECTORS).vectors
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    wrong = int((~(np.abs(lengths - 1) <= _UNIT_TOLERANCE)).sum())  # so that what is not finite is wrong, too
    if wrong:
        lost = int((~np.isfinite(lengths)).sum())
        finding = f"the encoder is at fault: {wrong:,} of {len(vectors):,} vectors are not of length 1, {lost:,} of them not finite"
        return fault("encoder/length", finding, "take an earlier checkpoint, or train anew; then rayjobs index")
    return ok("encoder/length", f"{len(vectors):,} vectors are finite and of length 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far vectors spread."""

    rank: float
    """Effective rank about their mean (Roy and Vetterli, The effective rank, 2007): exp of the entropy of the shares of variance."""
    median: float
    """Of the cosines of random pairs."""
    deviation: float
    """Of the same, standard."""


def spread_of(vectors: Array, *, seed: int = 0) -> Spread:
    """Measure (n, dim) vectors of length 1."""
    wide = vectors.astype(np.float64)
    variances = np.linalg.svd(wide - wide.mean(axis=0), compute_uv=False) ** 2
    shares = variances[variances > 0] / max(variances.sum(), np.finfo(np.float64).tiny)
    rng = np.random.default_rng(seed)
    one = rng.integers(0, len(wide), 20_000)
    other = (one + rng.integers(1, len(wide), len(one))) % len(wide)  # never the same
    cosines = (wide[one] * wide[other]).sum(axis=1)
    return Spread(rank=float(np.exp(-(shares * np.log(shares)).sum())), median=float(np.median(cosines)), deviation=float(cosines.std()))


def collapse(opened: Opened, *, constant: float) -> Check:
    """See whether the encoder tells tiles apart.

    The lines: where half of all pairs of different tiles have a cosine of `LEAST_COSINE`, the service takes them for the same tile embedded
    twice; where the effective rank is below 2, one number tells all that vectors tell.

    Args:
        opened: the index.
        constant: share of tiles that show nothing, of which no encoder makes anything.
    """
    name, vectors = "encoder/collapse", opened.drawn(_COMPARED).vectors
    lengths = np.linalg.norm(vectors, axis=1)
    vectors = vectors[np.abs(lengths - 1) <= _UNIT_TOLERANCE]
    if len(vectors) < _FEWEST:
        return ok(name, f"{len(vectors)} tiles are too few to tell")
    found = spread_of(vectors)
    said = (
        f"effective rank {found.rank:.1f} of {vectors.shape[1]}, cosines of random pairs {found.median:.4f} +- {found.deviation:.4f} "
        f"(collapse: from {LEAST_COSINE}, or a rank below {_LOWEST_RANK:g})"
    )
    fallen = found.median >= LEAST_COSINE or found.rank < _LOWEST_RANK
    if fallen and constant > 0.5:  # noqa: PLR2004  most of them
        return caution(name, f"{said}; but {constant:.0%} of the tiles show nothing", "see imagery/constant first")
    if fallen:
        return fault(name, f"the encoder is at fault: it does not tell tiles apart: {said}", f"{_TRAIN}; then rayjobs index")
    if found.rank < _LOW_RANK:
        return caution(name, f"few directions are used: {said}", f"compare with image statistics in rayjobs evaluate; {_TRAIN}")
    return ok(name, said)


def carried(opened: Opened) -> Checkpointed:
    """Return the encoder beside the segments. Raises `StorageError`, `CheckpointError`."""
    read = opened.version.read
    return from_files(read("encoder/model.json"), read("encoder/model.safetensors"))


def fingerprint(opened: Opened) -> Check:
    """Compare the encoder beside the segments with the one that the manifest names."""
    found, named = carried(opened).fingerprint, opened.manifest.encoder_fingerprint
    if found != named:
        finding = f"the index is at fault: it carries encoder {found[:12]}, and was made by {named[:12]}"
        return fault("index/encoder", finding, "build the index anew: rayjobs index")
    return ok("index/encoder", f"it carries encoder {found[:12]}, which its manifest names")


def checkpoint(opened: Opened, experiment: Experiment) -> Check:
    """Compare the encoder of the index with the experiment's: the run's newest checkpoint, or a registered model."""
    made_by = opened.manifest.encoder_fingerprint
    if experiment.workspace.encoder is None and experiment.open_workspace().checkpoints.current() is None:
        return ok("index/checkpoint", f"made by encoder {made_by[:12]}; the run has no checkpoint to compare with")
    wanted = chosen_encoder(experiment)
    if wanted.fingerprint != made_by:
        finding = f"the index is at fault: made by encoder {made_by[:12]}, and not by {wanted.words}: it is not served"
        return fault("index/checkpoint", finding, "run rayjobs index, or name the index's own workspace.run or workspace.encoder")
    return ok("index/checkpoint", f"made by encoder {made_by[:12]}: {wanted.words}")


@torch.inference_mode()
def embedded(encoder: Checkpointed, pixels: Pixels) -> Array:
    """Return the embeddings of chips, made anew: (n, dim) float32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = encoder.module.eval().to(device)
    batches = [pixels.chips[start : start + CANONICAL_BATCH] for start in range(0, len(pixels.chips), CANONICAL_BATCH)]
    spec = encoder.spec
    stacked = (stack(batch, spec.tile_size, nearest=spec.maps_of(len(batch[0].pixels))) for batch in batches)
    parts = [module(*(part.to(device) for part in inputs)).float().cpu().numpy() for inputs in stacked]
    return np.concatenate(parts)


def anew(opened: Opened, pixels: Pixels) -> Check:
    """Embed stored tiles anew, and compare with what the index holds of them.

    A vector that is not the tile's own, but another tile's, tells that rows are mixed up, which is the index's fault and not the encoder's.
    """
    name, made = "encoder/anew", embedded(carried(opened), pixels)
    cosines = (made * pixels.vectors).sum(axis=1)
    wrong = np.flatnonzero(~(cosines >= least_cosine(pixels.vectors, LEAST_COSINE)))
    if not len(wrong):
        return ok(name, f"{len(made)} stored tiles embedded anew have a cosine of {cosines.min():.5f} or more to their vectors")
    elsewhere = sum(_is_there(opened, made[number]) for number in wrong)
    first = pixels.chips[int(wrong[0])].tile_id
    said = (
        f"{len(wrong)} of {len(made)} stored tiles embedded anew differ from their vectors (tile {first}: cosine {cosines[wrong[0]]:.4f})"
    )
    if 2 * elsewhere > len(wrong):
        finding = f"the index is at fault: {said}, and {elsewhere} of them are found as other tiles: rows are mixed up"
        return fault("index/rows", finding, "build the index anew: rayjobs index")
    remedy = (
        "build the index anew with the checkpoint that you mean, or sample anew where chips were changed: rayjobs sample, rayjobs index"
    )
    return fault(name, f"the encoder is at fault: {said}", remedy)


def _is_there(opened: Opened, vector: Array) -> bool:
    """Whether any tile has a vector."""
    query = np.ascontiguousarray(vector[None], np.float32)
    return bool(np.isfinite(query).all()) and any(segment.exact(query, 1)[0][0, 0] >= 1 - 10 * SAME for segment in opened.segments)
