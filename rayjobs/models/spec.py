"""The value that says everything about an encoder but its weights: what `model.json` holds. Loads no torch."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from rayjobs.errors import CheckpointError

FORMAT = 2
"""Version of `model.json`."""

PACKAGED_BACKBONE = "tf_efficientnet_lite0"
"""The one backbone whose ImageNet weights come as an installed package."""

STATISTICS_PER_BAND = 4
"""Mean, standard deviation, least and greatest value."""

_MAX_BANDS, _MAX_DIM, _MAX_SIDE, _MAX_JSON_BYTES = 1024, 65_536, 8192, 4_000_000
_MAX_CELLS, _MAX_CODES = 64, 256
_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")
_KINDS = ("encoder", "statistics")
_PROJECTIONS = ("linear", "mlp", "none", "hash", "activations")
BITS_PER_BYTE = 8
_DISTANCES = ("cosine", "euclidean")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """An encoder without its weights: architecture, the pixels it takes, the vectors it gives."""

    kind: Literal["encoder", "statistics"] = "encoder"
    """A network, or per-band statistics of the image."""
    backbone: str
    """Name in timm; empty for statistics."""
    projection: Literal["linear", "mlp", "none", "hash", "activations"] = "linear"
    """From the backbone's pooled features to `dim`; `hash` gives codes of `dim` bits, and `activations`, with the same weights, the numbers
    from which these are made."""
    dim: int
    """Numbers in an embedding, or bits of a code."""
    domain_whitening: int | None = None
    """Features of a group that are whitened together before the projection; None for no such whitening."""
    bands: tuple[str, ...]
    """Names, in the order of the pixels' first axis."""
    dtype: str
    """Numpy name of the pixels' type."""
    mean: tuple[float, ...]
    """(bands,) subtracted from the pixels, in their own unit; invalid pixels take this value."""
    std: tuple[float, ...]
    """(bands,) pixels are divided by this after the subtraction; positive."""
    tile_size: int
    """Side of a tile in pixels."""
    input_size: int
    """Side in pixels that images are resized to before the backbone."""
    resolution_m: float | None
    """Side of a pixel on the ground in metres; None where it is not known or not one."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    """What embeddings are compared with; `cosine` embeddings have length 1."""
    pool_cells: int = 1
    """Cells a side into which the backbone's last feature map is averaged; 1: the backbone's own pooling."""
    maps: tuple[str, ...] = ()
    """Those of the bands that are maps (labels, elevation), fused with the imagery in front of the backbone."""
    codes: tuple[tuple[float, ...], ...] = ()
    """For each map the codes that become channels of their own; none of a map whose values are numbers."""
    feature_mean: tuple[float, ...] | None = None
    """(dim,) of a statistics encoder: subtracted from the statistics; None for none."""
    feature_std: tuple[float, ...] | None = None
    """(dim,) of a statistics encoder: the statistics are divided by this; None for none."""

    @property
    def gives_codes(self) -> bool:
        """Whether embeddings are codes: each number +1/sqrt(dim) or -1/sqrt(dim)."""
        return self.projection == "hash"

    def __post_init__(self) -> None:
        """Check everything, since a spec may come from a file that somebody else wrote."""
        fault = next((fault for holds, fault in self._rules() if not holds), None)
        if fault:
            raise CheckpointError(f"model.json: {fault}; the checkpoint was not written by this program, or was altered")

    def _rules(self) -> list[tuple[bool, str]]:
        bands = len(self.bands)
        numbers = [*self.mean, *self.std, *itertools.chain(*self.codes), *(self.feature_mean or ()), *(self.feature_std or ())]
        features = [values for values in (self.feature_mean, self.feature_std) if values is not None]
        return [
            (self.kind in _KINDS, f"kind {self.kind!r} is none of {_KINDS}"),
            (self.projection in _PROJECTIONS, f"projection {self.projection!r} is none of {_PROJECTIONS}"),
            (self.distance in _DISTANCES, f"distance {self.distance!r} is none of {_DISTANCES}"),
            (self.kind == "statistics" or bool(_NAME.fullmatch(self.backbone)), f"backbone {self.backbone!r} is no timm name"),
            (1 <= bands <= _MAX_BANDS, f"{bands} bands, which is not between 1 and {_MAX_BANDS}"),
            (len(set(self.bands)) == bands, "a band is named twice"),
            (1 <= self.dim <= _MAX_DIM, f"dim {self.dim} is not between 1 and {_MAX_DIM}"),
            (1 <= self.pool_cells <= _MAX_CELLS, f"pool_cells {self.pool_cells} is not between 1 and {_MAX_CELLS}"),
            (set(self.maps) < set(self.bands) and len(set(self.maps)) == len(self.maps), "maps are not some of the bands, each once"),
            (len(self.codes) == len(self.maps), f"{len(self.maps)} maps but codes of {len(self.codes)}"),
            (all(len(set(codes)) == len(codes) <= _MAX_CODES for codes in self.codes), "a map's codes are too many, or one is there twice"),
            (not self.hashes or self.dim % BITS_PER_BYTE == 0, f"{self.dim} bits are no whole bytes"),
            (not self.hashes or (self.kind == "encoder" and self.distance == "cosine"), "codes are of networks, and compared by cosine"),
            (
                self.domain_whitening is None or (self.kind == "encoder" and 1 <= self.domain_whitening <= _MAX_DIM),
                f"domain_whitening {self.domain_whitening} is no size of a group of features",
            ),
            (1 <= self.tile_size <= _MAX_SIDE, f"tile_size {self.tile_size} is not between 1 and {_MAX_SIDE}"),
            (1 <= self.input_size <= _MAX_SIDE, f"input_size {self.input_size} is not between 1 and {_MAX_SIDE}"),
            (_is_number_type(self.dtype), f"dtype {self.dtype!r} is no type of pixels"),
            (len(self.mean) == bands == len(self.std), f"{bands} bands but {len(self.mean)} means and {len(self.std)} deviations"),
            (all(math.isfinite(number) for number in numbers), "a mean or deviation is not finite"),
            (all(value > 0 for value in self.std), "a deviation is not positive"),
            (self.resolution_m is None or 0 < self.resolution_m < math.inf, f"resolution_m {self.resolution_m} is not positive"),
            (all(len(values) == self.dim for values in features), "feature_mean and feature_std need `dim` numbers each"),
            (all(value > 0 for value in self.feature_std or ()), "a feature's deviation is not positive"),
            (
                self.kind != "statistics" or self.dim == STATISTICS_PER_BAND * bands,
                f"statistics of {bands} bands are not {self.dim} numbers",
            ),
        ]

    @property
    def imagery(self) -> tuple[str, ...]:
        """The bands that are no maps."""
        return tuple(band for band in self.bands if band not in self.maps)

    @property
    def modalities(self) -> tuple[tuple[str, ...], ...]:
        """Which bands an image may have, told apart by their number: all; of an encoder with maps also the imagery or the maps alone."""
        if not self.maps:
            return (self.bands,)
        alone = (self.imagery, self.maps) if len(self.maps) != len(self.imagery) else (self.imagery,)
        return (self.bands, *alone)

    def modality_of(self, count: int) -> tuple[str, ...]:
        """Return the bands of an image that has so many of them; raises as `check_bands` does."""
        check_bands(self, count)
        return next(taken for taken in self.modalities if len(taken) == count)

    def maps_of(self, count: int) -> list[int]:
        """Return the places of maps among the bands of an image that has so many; raises as `check_bands` does."""
        return [place for place, band in enumerate(self.modality_of(count)) if band in self.maps]

    @property
    def hashes(self) -> bool:
        """Whether it ends in a hash head."""
        return self.projection in {"hash", "activations"}

    def to_json(self) -> bytes:
        """Return the canonical `model.json`: sorted keys, no spaces, the same bytes for the same spec."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> ModelSpec:
        """Read `model.json`, which may be hostile.

        Raises:
            CheckpointError: not JSON, keys missing or unknown, a value of the wrong type or out of range.
        """
        if len(data) > _MAX_JSON_BYTES:
            raise CheckpointError(f"model.json has {len(data):,} bytes, above the limit of {_MAX_JSON_BYTES:,}; it is none of ours")
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CheckpointError("model.json is not JSON; take another checkpoint") from error
        if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
            raise CheckpointError(f"model.json is not of format {FORMAT}; it was written by another version of this program")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        wrong = sorted(raw.keys() ^ fields.keys())
        if wrong:
            raise CheckpointError(f"model.json lacks or has too many of the keys {wrong}; take another checkpoint")
        return cls(**{name: _checked(name, str(fields[name].type), value) for name, value in raw.items()})


def _checked(name: str, declared: str, value: Any) -> Any:
    """Return a JSON value as the field's type, or refuse it."""
    if declared.startswith("tuple[tuple") and isinstance(value, list):
        return tuple(_checked(name, "tuple[float, ...]", part) for part in value)
    if declared.startswith("tuple") and isinstance(value, list):
        wanted = str if declared.startswith("tuple[str") else (int, float)
        if all(isinstance(part, wanted) and not isinstance(part, bool) for part in value):
            return tuple(value) if wanted is str else tuple(float(part) for part in value)
    elif value is None and declared.endswith("None"):
        return None
    elif declared.startswith("int") and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif declared.startswith("float") and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif (declared == "str" or declared.startswith("Literal")) and isinstance(value, str):
        return value
    raise CheckpointError(f"model.json: {name} has the wrong type; take another checkpoint")


def _is_number_type(name: str) -> bool:
    try:
        return np.dtype(name).kind in "uif" and np.dtype(name).name == name
    except (TypeError, ValueError):
        return False


def statistics_spec(
    *, bands: Sequence[str], mean: Sequence[float], std: Sequence[float], tile_size: int, resolution_m: float | None, dtype: str
) -> ModelSpec:
    """Return the spec of per-band image statistics, compared by Euclidean distance; see `rayjobs.models.encoder.standardised`."""
    return ModelSpec(
        kind="statistics",
        backbone="",
        projection="none",
        dim=STATISTICS_PER_BAND * len(bands),
        bands=tuple(bands),
        dtype=dtype,
        mean=tuple(float(value) for value in mean),
        std=positive(std),
        tile_size=tile_size,
        input_size=tile_size,
        resolution_m=resolution_m,
        distance="euclidean",
    )


def standardised(spec: ModelSpec, features: np.ndarray[Any, Any]) -> ModelSpec:
    """Return a statistics spec whose numbers have mean 0 and deviation 1 over a sample.

    Args:
        spec: of kind `statistics`, not yet standardised.
        features: (samples, dim) what its encoder gave for the sample.
    """
    exact = np.asarray(features, np.float64)
    return dataclasses.replace(
        spec, feature_mean=tuple(float(value) for value in exact.mean(axis=0)), feature_std=positive(exact.std(axis=0).tolist())
    )


def positive(std: Sequence[float]) -> tuple[float, ...]:
    """Return deviations with 1 in place of 0: what never varies is left as it is."""
    return tuple(float(value) if value > 0 else 1.0 for value in std)


def check_bands(spec: ModelSpec, bands: Sequence[str] | int) -> None:
    """Refuse imagery whose bands are not those of the encoder, or those of one of its modalities; see `ModelSpec.modalities`.

    Args:
        spec: of the encoder.
        bands: names in order, or only their number where they have no names.

    Raises:
        CheckpointError: naming both lists.
    """
    accepted = " or ".join(", ".join(taken) for taken in spec.modalities)
    if isinstance(bands, int):
        if bands not in map(len, spec.modalities):
            wanted = " or ".join(str(len(taken)) for taken in spec.modalities)
            raise CheckpointError(f"the image has {bands} bands, the encoder takes {wanted} ({accepted}); send these bands, in this order")
    elif tuple(bands) not in spec.modalities:
        raise CheckpointError(f"the imagery has bands {', '.join(bands)}; the encoder takes {accepted}; set rasters.bands to one of these")
