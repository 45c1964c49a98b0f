"""What studies of quality share: images in memory, the project's own training on them without Ray, measurements that are kept."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import torch

from rayjobs.embed.stack import stack_arrays
from rayjobs.geo import Window
from rayjobs.models.encoder import Encoder
from rayjobs.rasters.reader import RasterReader
from rayjobs.rasters.sources import discover
from rayjobs.retrieval.intervals import Interval, resampled_interval
from rayjobs.retrieval.metrics import PairList, SameLabel, score
from rayjobs.tiles.table import plan_tiles
from rayjobs.train.ground import ground_of, supervise
from rayjobs.train.loop import begin_projection, find_looks, is_time_to_mine, plan_next, steps_per_epoch
from rayjobs.train.mine import mined_with
from rayjobs.train.objective import Objective
from rayjobs.train.shown import ChipCache
from rayjobs.train.state import State, TrainPlan, initial
from rayjobs.train.step import Bench, train_epoch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from rayjobs.experiment import Experiment
    from rayjobs.models.spec import ModelSpec
    from rayjobs.train.shown import Shown

DATA = Path(os.environ.get("RAYJOBS_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
METRICS = ("MAP@R", "hit_rate@1")

Keys = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Pictures or tiles, decoded and resized."""

    tiles: pa.Table
    """Of the project's tile table."""
    pixels: np.ndarray[Any, Any]
    """(images, bands, side, side)."""

    def of(self, classes: Sequence[str]) -> Images:
        """Return the images of some classes."""
        return self.where(np.isin(self.labels, list(classes)))

    def where(self, chosen: np.ndarray[Any, Any]) -> Images:
        """Return the images that (images,) bool marks."""
        return Images(tiles=self.tiles.filter(pa.array(chosen)), pixels=self.pixels[chosen])

    @property
    def labels(self) -> np.ndarray[Any, Any]:
        """(images,) names of classes."""
        return np.array(self.tiles["label"].to_pylist())


def images_of(experiment: Experiment) -> Images:
    """Read the tiles of an experiment, in the order of its tile table."""
    scenes = {scene.scene_id: scene for scene in discover(experiment.rasters).scenes}
    tiles = plan_tiles(list(scenes.values()), experiment.tiles)
    windows = [Window(**{name: row[name] for name in ("row", "col", "height", "width")}) for row in tiles.to_pylist()]
    with RasterReader() as reader:
        read = [reader.read(scenes[scene_id], window) for scene_id, window in zip(tiles["scene_id"].to_pylist(), windows, strict=True)]
    pixels, _ = stack_arrays([(found.values, found.valid) for found in read], cast("int", experiment.model.input_size))
    return Images(tiles=tiles, pixels=pixels.numpy())


def train(
    experiment: Experiment,
    tiles: pa.Table,
    shown: Shown,
    spec: ModelSpec,
    *,
    target: Shown | None = None,
    begin: Callable[[Encoder], None] = lambda encoder: None,  # noqa: ARG005
    wrapped: Callable[[Encoder], nn.Module] | None = None,
) -> nn.Module:
    """Train on some tiles as `rayjobs train` does with `mining.mode: periodic`, and return the encoder.

    Args:
        experiment: all settings.
        tiles: rows of the tile table, sorted by tile id.
        shown: what the network is shown of them.
        spec: the encoder.
        target: what the network is shown of the tiles of `adaptation.target`.
        begin: what the encoder begins with, beyond its weights and `model.whitening`.
        wrapped: the encoder as it embeds, in training, in mining and afterwards; None for what `shown` asks for.
    """
    plan = TrainPlan(experiment=experiment, source=cast("Any", None), spec=spec, mailbox=None, lease="")
    ground, device = ground_of(tiles, experiment), torch.device("cpu")
    objective = Objective(experiment, ground, dim=spec.dim, device=device)
    state: State = initial(plan, objective, device)
    encoder = cast("Encoder", state.module)
    on = Bench(plan=plan, ground=ground, shown=shown, device=device, objective=objective, target=target)
    if wrapped is None:
        begin_projection(on, state)
        find_looks(on, state)
    begin(encoder)
    state.parallel = shown.network_of(encoder) if wrapped is None else wrapped(encoder)
    supervision = supervise(experiment, ground)
    steps = steps_per_epoch(experiment, supervision)
    while state.epoch < experiment.train.epochs:
        if is_time_to_mine(experiment, state.epoch):
            mined, _ = mined_with(experiment, ground, supervision, state.parallel, shown, device)
            state.mined = mined.hard_tiles
        train_epoch(on, state, plan_next(on, state, supervision, steps))
        state.end_epoch()
    learned = cast("Encoder", state.learned)
    return learned if wrapped is None else wrapped(learned)


def chips_of(images: Images) -> ChipCache:
    """Return images as training reads them, all of their pixels valid."""
    return ChipCache(pixels=images.pixels, valid=np.ones((len(images.pixels), *images.pixels.shape[2:]), bool))


@torch.inference_mode()
def features_of(encoder: Encoder, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the backbone's features of images: (images, features)."""
    encoder.eval()
    parts = np.array_split(pixels, -(-len(pixels) // 60))
    return np.concatenate([encoder.features(torch.from_numpy(part)).float().numpy() for part in parts])


@torch.inference_mode()
def vectors_of(module: nn.Module, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Embed images: (images, dim) float32."""
    module.eval()
    return torch.cat([module(torch.from_numpy(part)) for part in np.array_split(pixels, -(-len(pixels) // 60))]).numpy()


def measure(vectors: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], distance: str = "cosine") -> dict[str, Any]:
    """Rank all images for each: the metrics, and the first of them for each class. The query itself is excluded."""
    codes, count = np.unique(labels, return_inverse=True)[1], len(labels)
    itself = PairList(np.repeat(np.arange(count)[:, None], 2, axis=1), count)
    found = score(vectors, vectors, relevance=SameLabel(codes, codes), excluded=itself, ks=(1,), distance=cast("Any", distance))
    by_class = {name: float(found.values[METRICS[0]][labels == name].mean()) for name in np.unique(labels)}
    return {**{name: float(found.values[name].mean()) for name in METRICS}, "by_class": by_class}


class Record:
    """Measurements in a file of JSON lines, each done once; the first line names the study that they belong to."""

    def __init__(self, path: Path, study: str, metrics: Sequence[str] = METRICS) -> None:
        """Take up what the file holds.

        Args:
            path: the file.
            study: digest of all that decides its figures; a file of another study is refused.
            metrics: of each measurement that are printed.
        """
        self._path, self._metrics = path, metrics
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"study": study}) + "\n")
        first, *lines = map(json.loads, path.read_text().splitlines())
        if first.get("study") != study:
            raise SystemExit(f"{path} holds measurements of other settings; give another --out")
        self.entries: dict[Keys, dict[str, Any]] = {tuple(entry["key"]): entry for entry in lines}

    def once(self, name: Keys, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what stands under a name, after working it out if nothing does."""
        if name not in self.entries:
            begun = time.monotonic()
            entry = {"key": list(name), **work(), "seconds": round(time.monotonic() - begun, 1)}
            with self._path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            print(" ".join(name), {metric: round(entry[metric], 4) for metric in self._metrics}, f"{entry['seconds']} s", flush=True)
            self.entries[name] = entry
        return self.entries[name]


def interval_over(values: Sequence[float]) -> Interval:
    """Return mean and Student's interval over partitions."""
    return resampled_interval(np.array(values), 0.0)
