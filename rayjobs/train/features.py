"""The features of a frozen backbone, computed once for each tile and kept in the workspace: what heads are trained on in place of pixels.

A version of `features/<set>` is named after all that its numbers are made of: the tiles, how they are augmented, and the backbone with its
weights. So other runs, trials of a sweep, seeds and heads find it. The ranks compute it in parts of consecutive tiles, in canonical blocks,
whichever rank takes a part: the numbers do not depend on how many there are, and a run that was killed leaves its parts to the next.
Each node then maps its copy into memory, as it does chips.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rayjobs.config import to_dict
from rayjobs.errors import ConfigError, DamagedError, NotFoundError, PublishConflictError, StorageError, TrainingError
from rayjobs.metric.ranking import canonical_blocks
from rayjobs.models.checkpoint import fingerprint
from rayjobs.models.encoder import Features, bare
from rayjobs.storage import FileDigest, deposit, digest_of
from rayjobs.train import cache
from rayjobs.train.augment import Draws
from rayjobs.train.distributed import agreed, found_by_rank_zero, gathered, rank, world_size
from rayjobs.train.mine import embed_blocks, embed_each
from rayjobs.train.shown import FeatureCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rayjobs.experiment import Experiment
    from rayjobs.models.encoder import Encoder
    from rayjobs.models.spec import ModelSpec
    from rayjobs.storage import Artefact, Version
    from rayjobs.train.section import TrainSection
    from rayjobs.train.shown import ChipCache, FloatArray, Inputs, IntArray
    from rayjobs.train.state import TrainPlan

_FORMAT = 1
"""Raised when the same tiles and backbone would give other numbers, or other files."""
_LEAST, _MOST, _FILES = 64, 1024, 256
"""Tiles of a file, and files of a set of middle size: enough for the ranks to share, few enough to be read."""


def check_frozen(experiment: Experiment) -> None:
    """Refuse features that would not stay what they are.

    Raises:
        ConfigError: the backbone learns, or what goes before it.
    """
    count = experiment.train.frozen_features
    if count and experiment.model.freeze not in {-1, "all"}:
        raise ConfigError(
            f"train.frozen_features {count} computes the backbone's features once, and with model.freeze {experiment.model.freeze} the "
            "backbone learns; set model.freeze: all, or train.frozen_features: 0"
        )
    pairs = experiment.train.supervision == "views" or experiment.adaptation.term == "consensus"
    if count == 1 and pairs:
        raise ConfigError(
            "train.frozen_features 1 keeps one version of each tile, and train.supervision: views or adaptation.term: consensus compares "
            "two; keep more, such as 8"
        )
    if count and experiment.model.fusion is not None:
        raise ConfigError(
            f"train.frozen_features {count} computes the backbone's features once, and model.fusion learns what it is shown; set "
            "train.frozen_features: 0"
        )


def feature_bytes(settings: TrainSection, spec: ModelSpec, tiles: int) -> int:
    """Return how many bytes the features of so many training tiles take; 0 where none are kept."""
    kept = settings.frozen_features
    return tiles * kept * bare(spec).dim * 4 if kept else 0


def frozen_features(
    plan: TrainPlan,
    encoder: Encoder,
    tile_ids: Sequence[str],
    chips: Callable[[], ChipCache],
    *,
    versions: int,
    fills: bool,
) -> FeatureCache:
    """Return the features of tiles, which all ranks compute together where the workspace does not hold them whole.

    Args:
        plan: says set, augmentation, seed and workspace.
        encoder: on the rank's device; its backbone is frozen.
        tile_ids: of the tiles, sorted.
        chips: returns theirs; asked for only if features are computed, on all ranks then.
        versions: of each tile.
        fills: whether this rank fetches them for its node.

    Raises:
        TrainingError: on all ranks, if a feature is not finite.
        StorageError: they cannot be kept.
    """
    begun, device = time.monotonic(), next(encoder.parameters()).device
    wanted = _wanted(plan, encoder, tile_ids, versions)
    found = found_by_rank_zero(wanted.published)
    computes = found is None or not agreed(not fills or wanted.fetched(found), device)
    if computes:
        made = wanted.computed(_Maker(encoder=encoder, chips=chips(), plan=plan))
        if not agreed(not fills or wanted.fetched(made), device):
            raise StorageError(f"{made.store.address(made.prefix)} cannot be read back as it was written; run the command again")
    plan.tell("features", tiles=len(tile_ids), versions=versions, computed=computes, seconds=time.monotonic() - begun)
    return FeatureCache(values=cache.mapped(wanted.folder, "features"))


def _wanted(plan: TrainPlan, encoder: Encoder, tile_ids: Sequence[str], versions: int) -> _Wanted:
    without_projection = bare(plan.spec)
    weights = {name: tensor for name, tensor in encoder.state_dict().items() if name.startswith("backbone.")}
    backbone = fingerprint(without_projection, weights)
    settings = plan.experiment.train
    changes = {"augment": to_dict(settings.augment), "seed": settings.seed} if versions > 1 else {}
    made_of = [_FORMAT, plan.source.version, backbone, versions, changes, list(tile_ids)]
    return _Wanted(
        artefact=plan.experiment.open_workspace().features,
        version=hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24],
        shape=(len(tile_ids), versions, without_projection.dim),
        fields={"parents": {"set": plan.source.version}, "backbone_fingerprint": backbone},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The features of some tiles, wherever they are by now."""

    artefact: Artefact
    version: str
    shape: tuple[int, int, int]
    """Tiles, versions, features."""
    fields: Mapping[str, Any]
    """What the manifest says beyond counts."""

    @property
    def folder(self) -> Path:
        """Where this node keeps them."""
        return Path(tempfile.gettempdir(), "rayjobs-features", self.version)

    def published(self) -> Version | None:
        """Return the version of the workspace; None where there is none, or its manifest cannot be read."""
        try:
            return self.artefact.at(self.version)
        except (NotFoundError, DamagedError):
            return None

    def fetched(self, version: Version) -> bool:
        """Make sure that this node has a copy; return whether it has: not where a file is gone or damaged."""
        cache.drop_old(self.folder)
        try:
            cache.fill(self.folder, self._batches(version), self.shape[0])
        except (NotFoundError, DamagedError):
            return False
        return True

    def _batches(self, version: Version) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        for number, part in self._parts():
            data = version.read(_part_name(number))
            yield {"index": np.arange(part.start, part.stop), "features": _unpacked(data, self._shape_of(part))}

    def _parts(self) -> list[tuple[int, slice]]:
        tiles = self.shape[0]
        return list(enumerate(canonical_blocks(tiles, min(_MOST, max(_LEAST, tiles // _FILES)))))

    def _shape_of(self, part: slice) -> tuple[int, ...]:
        return (part.stop - part.start, *self.shape[1:])

    def computed(self, maker: _Maker) -> Version:
        """Compute what the workspace does not hold, each rank its share of the parts, and publish all from rank 0."""
        shares = gathered(self._share(maker))
        if fault := next((share for share in shares if isinstance(share, TrainingError)), None):
            raise fault
        return found_by_rank_zero(lambda: self._publish([entry for share in shares if isinstance(share, list) for entry in share]))

    def _share(self, maker: _Maker) -> list[FileDigest] | TrainingError:
        standing = self.published()
        try:
            return [self._kept(standing, maker, number, part) for number, part in self._parts()[rank() :: world_size()]]
        except TrainingError as error:
            return error

    def _kept(self, standing: Version | None, maker: _Maker, number: int, part: slice) -> FileDigest:
        """Return the file of a part: a sound one that is there, or one that is made now."""
        name, shape = _part_name(number), self._shape_of(part)
        store, prefix = self.artefact.store, f"{self.artefact.prefix}{self.version}/"
        try:
            if standing is not None:
                _unpacked(standing.read(name), shape)
                return standing.entry(name)
            data = store.read(prefix + name)
            _unpacked(data, shape)
            return digest_of(name, data)
        except (NotFoundError, DamagedError):
            return deposit(store, prefix, name, _packed(maker.features(part, shape)))

    def _publish(self, entries: Sequence[FileDigest]) -> Version:
        draft = self.artefact.draft(self.version)
        draft.add(entries)
        try:
            return draft.publish({**self.fields, "counts": dict(zip(("tiles", "versions", "features"), self.shape, strict=True))})
        except PublishConflictError:  # other features were made current meanwhile; these are found by their name
            return self.artefact.at(self.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maker:
    """Makes features on one rank."""

    encoder: Encoder
    chips: ChipCache
    plan: TrainPlan

    def features(self, part: slice, shape: tuple[int, ...]) -> FloatArray:
        """Return the features (tiles, versions, features) of consecutive tiles. Raises `TrainingError` where one is not finite."""
        device, training = next(self.encoder.parameters()).device, self.encoder.training
        module, made = Features(self.encoder).eval(), np.empty(shape, np.float32)
        rows, blocks = np.arange(part.start, part.stop), embed_blocks(part.stop - part.start, device)
        for version in range(shape[1]):
            read = partial(self._read, part=part, version=version, device=device)
            for block, found in embed_each(module, read, device, rows, blocks):
                made[block, version] = found.cpu().numpy()
        self.encoder.train(training)
        if not np.isfinite(made).all():
            raise TrainingError("features of the frozen backbone are not finite; look at model.pretrained and the set's pixels")
        return made

    def _read(self, rows: IntArray, *, part: slice, version: int, device: torch.device) -> Inputs:
        """Read consecutive tiles of a part as they are in a version; draws are of the whole part, whatever the blocks."""
        inputs, settings = self.chips.read(rows, device), self.plan.experiment.train
        if version == 0:
            return inputs
        seed = int(np.random.SeedSequence([settings.seed, version, part.start]).generate_state(1)[0])
        share = slice(int(rows[0]) - part.start, int(rows[-1]) + 1 - part.start)
        draws = Draws(generator=torch.Generator().manual_seed(seed), batch=part.stop - part.start, share=share)
        return self.chips.augmented(inputs, settings.augment, self.plan.spec, draws)


def _part_name(number: int) -> str:
    return f"part-{number:05d}.npy"


def _packed(features: FloatArray) -> bytes:
    return _header(features.shape) + features.tobytes()


def _header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _unpacked(data: bytes, shape: tuple[int, ...]) -> FloatArray:
    """Return the features of a file, whose header is not parsed, but compared with that of their shape.

    Raises:
        DamagedError: it is another one, or numbers are missing or not finite.
    """
    header = _header(shape)
    if not data.startswith(header) or len(data) != len(header) + 4 * int(np.prod(shape)):
        raise DamagedError(f"this file does not hold float32 {shape}; it was altered or cut short")
    found = np.frombuffer(data, np.float32, offset=len(header)).reshape(shape)
    if not np.isfinite(found).all():
        raise DamagedError("this file holds numbers that are not finite; it was altered")
    return found
