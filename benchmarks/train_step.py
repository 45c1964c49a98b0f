"""One step of training: ours beside a plain PyTorch loop, on the same chips in memory and fed from the workspace.

All sides take turns in one worker of Ray Train, on its threads: the same backbone, first weights, batches, precision, augmentation
(flips and right angles, brightness, jitter), loss and miner (triplets, semi-hard) and optimiser. The plain loop is what one would
write with torch, timm and pytorch-metric-learning: it knows neither masks nor ground, and its batches are planned beforehand. Ours plans
its batches, guards its negatives and tells the driver how far it is, within the measured time. Fed, our side's chips come out of the
shards of a published set through Ray Data, into the files that training maps: what that costs is shared out over the epochs of a
run of default length. Ratios are medians over rounds of neighbouring measurements, since the machine's speed drifts.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import timm
import torch
from pytorch_metric_learning import losses, miners
from torch import nn
from torch.nn import functional

from benchmarks import command
from benchmarks.sampling import make_raster
from rayjobs.cluster.mailbox import listening
from rayjobs.cluster.session import even_cpus, joined
from rayjobs.config import build
from rayjobs.console import Console
from rayjobs.experiment import Experiment
from rayjobs.models.section import spec_of
from rayjobs.sample import job
from rayjobs.train import cache, loop
from rayjobs.train.ground import ground_of, supervise, training_tiles
from rayjobs.train.objective import Batch, Objective
from rayjobs.train.shown import ChipCache
from rayjobs.train.state import TrainPlan, initial
from rayjobs.train.step import Bench, learn, precision, train_epoch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rayjobs.models.spec import ModelSpec

SIDE, TILE = 4096, 64
BACKBONE, DIM, BATCH, MARGIN = "resnet10t", 64, 128, 0.2
BRIGHTNESS, JITTER = 0.2, 0.1
SIDES = ("plain", "ours", "fed")
REFILLED_EVERY = 5
"""Rounds between fillings of the files that training maps."""


def experiment_of(folder: str, steps: int) -> Experiment:
    """Return an experiment with a set of its own in a folder, all of whose tiles train."""
    raw = {
        "name": "train-step",
        "workspace": {"uri": f"file:{folder}/workspace"},
        "rasters": {"sources": [{"kind": "files", "uris": [f"{folder}/raster.tif"]}]},
        # ground keeps no two different tiles apart, so that both sides look at the same triplets; it is asked nevertheless
        "tiles": {"size": TILE, "sampler": {"kind": "grid"}, "min_neg_dist": 0, "splits": {"train": 1, "val": 0, "test": 0}},
        "model": {"backbone": BACKBONE, "dim": DIM},
        "loss": {"kind": "triplet", "margin": MARGIN},
        "miner": {"kind": "semi_hard", "margin": MARGIN},
        "mining": {"every": 0},
        "train": {"batch_size": BATCH, "steps_per_epoch": steps, "augment": {"brightness": BRIGHTNESS, "jitter": JITTER}},
        "ray": {"num_cpus": 2, "gpu": "no"},
    }
    return build(Experiment, raw)


class PlainLoop:
    """The loop that one would write for this experiment alone."""

    def __init__(self, spec: ModelSpec, experiment: Experiment, pixels: torch.Tensor, device: torch.device) -> None:
        """Take the chips (tiles, bands, height, width) and make the rest."""
        self.pixels, self.device, settings = pixels, device, experiment.train
        self.backbone = timm.create_model(BACKBONE, num_classes=0, in_chans=len(spec.bands))
        self.head = nn.Linear(self.backbone.num_features, DIM)
        self.model = nn.Sequential(self.backbone, self.head).to(device).train()
        self.mean = torch.tensor(spec.mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(spec.std, device=device).view(-1, 1, 1)
        self.loss = losses.TripletMarginLoss(margin=MARGIN)
        self.miner = miners.TripletMarginMiner(margin=MARGIN, type_of_triplets="semihard")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=10_000)
        self.reduced = precision(settings.precision, device) == "bf16"

    def epoch(self, members: np.ndarray, groups: np.ndarray) -> list[float]:
        """Train on batches (steps, batch) of chips; return the loss of each step."""
        return [
            self.step(self.augmented(self.chips(rows)), torch.from_numpy(of_rows).to(self.device))
            for rows, of_rows in zip(members, groups, strict=True)
        ]

    def chips(self, rows: np.ndarray) -> torch.Tensor:
        """Return the chips of one batch on the device."""
        return self.pixels[torch.from_numpy(rows)].to(self.device, non_blocking=True)

    def augmented(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn each image at random, and change its light."""
        count, bands = pixels.shape[:2]
        mirrored, upturned, transposed = torch.rand(3, count, device=self.device) < 0.5
        pixels[mirrored] = pixels[mirrored].flip(-1)
        pixels[upturned] = pixels[upturned].flip(-2)
        pixels[transposed] = pixels[transposed].transpose(-1, -2)
        shift = BRIGHTNESS * self.drawn(count, 1) + JITTER * self.drawn(count, bands)
        gain = 1 + JITTER * self.drawn(count, bands)
        return (pixels.float() - self.mean) * gain[..., None, None] + self.mean + shift[..., None, None] * self.std

    def drawn(self, *shape: int) -> torch.Tensor:
        """Draw uniformly from -1 to 1."""
        return 2 * torch.rand(shape, device=self.device) - 1

    def step(self, pixels: torch.Tensor, groups: torch.Tensor) -> float:
        """Learn from one batch; return its loss."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.reduced):
            embeddings = self.model((pixels.float() - self.mean) / self.std)
        embeddings = functional.normalize(embeddings.float())
        loss = self.loss(embeddings, groups, self.miner(embeddings, groups))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()


def measure(config: Mapping[str, Any]) -> None:
    """Measure all sides on a worker, round by round, and tell the driver."""
    plan: TrainPlan = config["plan"]
    tiles, device = training_tiles(plan.source, plan.experiment), ray.train.torch.get_device()
    folder = cache.cache_folder(plan.source, tiles, plan.spec.tile_size)
    shutil.rmtree(folder, ignore_errors=True)
    ground = ground_of(tiles, plan.experiment)
    supervision = supervise(plan.experiment, ground)
    objective = Objective(plan.experiment, ground, dim=plan.spec.dim, device=device)
    state = initial(plan, objective, device)
    steps = loop.steps_per_epoch(plan.experiment, supervision)
    fills = []

    def filled() -> ChipCache:
        shutil.rmtree(folder, ignore_errors=True)
        begun = time.perf_counter()
        chips = loop.local_chips(plan, tiles)
        fills.append(time.perf_counter() - begun)
        return chips

    mapped = filled()
    held = ChipCache(pixels=np.array(mapped.pixels), valid=np.array(mapped.valid))
    plain = PlainLoop(plan.spec, plan.experiment, torch.from_numpy(np.array(mapped.pixels)), device)
    bench = {"ours": held, "fed": mapped}

    def trained(side: str) -> list[float]:
        on = Bench(plan=plan, ground=ground, shown=bench[side], device=device, objective=objective)
        state.epoch, state.step = 0, 0  # the same epoch each time
        return [train_epoch(on, state, loop.plan_next(on, state, supervision, steps))["train/loss"]]

    check_alike(plain, Bench(plan=plan, ground=ground, shown=held, device=device, objective=objective), state)
    planned = loop.plan_next(Bench(plan=plan, ground=ground, shown=held, device=device, objective=objective), state, supervision, steps)
    work = {
        "plain": lambda: plain.epoch(planned.members, planned.groups),
        "ours": lambda: trained("ours"),
        "fed": lambda: trained("fed"),
    }
    sides = config["sides"]
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(config["rounds"] + 1):  # the first is not counted
        if number % REFILLED_EVERY == 0:
            bench["fed"] = filled()
        for side in np.roll(sides, number).tolist():
            taken, of_cpu = timed(work[side])
            if number:
                seconds[side].append(taken)
                cpu[side].append(of_cpu)
    shutil.rmtree(folder, ignore_errors=True)
    found = {"seconds": seconds, "cpu": cpu, "fills": fills, "tiles": tiles.num_rows, "threads": torch.get_num_threads()}
    ray.get(plan.mailbox.post.remote({"kind": "measured", **found}))


def timed(work: Callable[[], list[float]]) -> tuple[float, float]:
    """Return how long work takes, and the processor's time of the whole process."""
    begun, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun, time.process_time() - cpu


def check_alike(plain: PlainLoop, on: Bench, state: Any) -> None:
    """Make sure that both sides, given the same weights and chips, find the same loss."""
    weights = state.module.state_dict()
    plain.backbone.load_state_dict(
        {name.removeprefix("backbone."): value for name, value in weights.items() if name.startswith("backbone.")}
    )
    plain.head.load_state_dict(
        {name.removeprefix("projection."): value for name, value in weights.items() if name.startswith("projection.")}
    )
    rows = np.linspace(0, len(on.shown) - 1, BATCH).astype(np.int64)
    groups = torch.arange(BATCH // 2).repeat_interleave(2).to(on.device)
    theirs = plain.step(plain.chips(rows).float(), groups)
    mine = learn(on, state, on.shown.read(rows, on.device), Batch(items=rows, groups=groups, clusters=None, seed=0))
    if abs(mine - theirs) > 1e-3 * theirs:
        raise RuntimeError(f"the sides compute different losses: ours {mine}, plain {theirs}")


def run(*, quick: bool) -> dict[str, float]:
    """Measure everything, print the table, and return the figures."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # else other programs of a busy machine come first, in bursts
    steps, rounds = (2, 3) if quick else (2, 19)
    with tempfile.TemporaryDirectory(prefix="train-step-") as folder:
        make_raster(Path(folder, "raster.tif"), side=SIDE // 2 if quick else SIDE)
        experiment = experiment_of(folder, steps)
        workspace = experiment.open_workspace()
        with joined(experiment.ray, workspace=workspace.store.uri, shared=False):
            job.run(experiment, Console(sys.stdout, io.StringIO()))
            found = measured(experiment, rounds)
    return report(found, steps, build(Experiment, {"name": "default", "rasters": experiment.rasters}).train.epochs)


def measured(experiment: Experiment, rounds: int, sides: Sequence[str] = SIDES) -> dict[str, Any]:
    """Run `measure` for some of the sides as `rayjobs train` runs its loop; return what it tells."""
    source = experiment.open_workspace().set.require("")
    manifest = source.manifest
    spec = spec_of(
        experiment.model,
        bands=tuple(manifest["bands"]),
        mean=tuple(manifest["band_mean"]),
        std=tuple(manifest["band_std"]),
        tile_size=TILE,
        resolution_m=manifest["resolution_m"],
        dtype=manifest["dtype"],
    )
    heard: list[dict[str, Any]] = []
    with listening(heard.append) as mailbox, tempfile.TemporaryDirectory(prefix="train-step-ray-") as storage:
        plan = TrainPlan(experiment=experiment, source=source, spec=spec, mailbox=mailbox, lease="")
        ray.train.torch.TorchTrainer(
            measure,
            train_loop_config={"plan": plan, "rounds": rounds, "sides": list(sides)},
            datasets={"chips": cache.chip_dataset(source, training_tiles(source, experiment), TILE)},
            dataset_config=ray.train.DataConfig(datasets_to_split=[]),
            scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": even_cpus(1)}),
            run_config=ray.train.RunConfig(name="ray", storage_path=storage),
        ).fit()
    return next(message for message in heard if message["kind"] == "measured")


def report(found: Mapping[str, Any], steps: int, epochs: int) -> dict[str, float]:
    """Print the table and return the figures."""
    seconds, cpu, tiles, fill = found["seconds"], found["cpu"], found["tiles"], max(found["fills"])
    per_tile = {side: np.array(seconds[side]) / (steps * BATCH) for side in SIDES}
    mapped, per_tile["fed"] = per_tile["fed"], per_tile["fed"] + fill / (epochs * tiles)
    print(f"{BACKBONE}, {TILE} px, batches of {BATCH}, {found['threads']} threads; {len(mapped)} rounds of {steps} steps of each side")
    print(f"{tiles} tiles fed in {fill:.1f} s (the slowest of {len(found['fills'])} times), shared out over {epochs} epochs")
    print(f"{'side':<10}{'tiles/s':>10}{'CPU ms/tile':>13}")
    for side in SIDES:
        print(f"{side:<10}{1 / np.median(per_tile[side]):>10.1f}{1e3 * np.median(cpu[side]) / (steps * BATCH):>13.2f}")
    ratios = {"step_ratio": per_tile["plain"] / per_tile["ours"], "fed_ratio": per_tile["ours"] / per_tile["fed"]}
    figures = {
        **{name: np.median(of_rounds) for name, of_rounds in ratios.items()},
        **{f"{name}_quartile_{part}": np.quantile(ratio, part / 4) for name, ratio in ratios.items() for part in (1, 3)},
        "fed_ratio_once_filled": np.median(per_tile["ours"] / mapped),
        "step_cpu_ratio": np.median(np.array(cpu["plain"]) / np.array(cpu["ours"])),
        "fill_tiles_per_s": tiles / fill,
        **{f"{side}_tiles_per_s": 1 / np.median(per_tile[side]) for side in SIDES},
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def main() -> None:
    """Run from the command line."""
    options = command.parser("train_step", __doc__, quick="fewer tiles, steps and rounds").parse_args()
    figures = run(quick=options.quick)
    for name, words in (("step_ratio", "ours over plain"), ("fed_ratio", "fed over ours")):
        low, high = (figures[f"{name}_quartile_{part}"] for part in (1, 3))
        print(f"{words:<18}{figures[name]:.3f} (quartiles of the rounds {low:.3f} and {high:.3f})")
    if options.json:
        command.end("train_step", figures, ("rayjobs", "ray", "torch", "timm", "pytorch-metric-learning"))


if __name__ == "__main__":
    main()
