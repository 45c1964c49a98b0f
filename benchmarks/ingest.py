"""Training steps fed by the pipeline, beside the same steps on chips that are in memory already.

One worker of Ray Train takes turns: our training step on chips in its own memory, and the same step on chips that came out of a
published set's shards on a real S3 server through Ray Data, into the files that training maps (what every epoch after the first reads).
`fed_ratio` is the median over neighbouring rounds; beside it stands what filling those files costs the first epoch.
"""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import command
from benchmarks.sampling import make_raster
from benchmarks.train_step import BACKBONE, BATCH, SIDE, TILE, experiment_of, measured
from rayjobs.cluster.session import joined
from rayjobs.console import Console
from rayjobs.sample import job
from tests import seaweed

if TYPE_CHECKING:
    from collections.abc import Mapping

STEPS = 2
SIDES = ("ours", "fed")


def run(*, quick: bool) -> dict[str, float]:
    """Measure both sides, print the table, and return the figures."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # else other programs of a busy machine come first, in bursts
    with tempfile.TemporaryDirectory(prefix="ingest-") as folder, seaweed.serve() as server:
        os.environ.update(server.environment)
        make_raster(Path(folder, "raster.tif"), side=SIDE // 2 if quick else SIDE)
        experiment = experiment_of(folder, STEPS)
        experiment = dataclasses.replace(experiment, workspace=dataclasses.replace(experiment.workspace, uri=server.bucket("ingest")))
        workspace = experiment.open_workspace()
        with joined(experiment.ray, workspace=workspace.store.uri, shared=False):
            job.run(experiment, Console(sys.stdout, io.StringIO()))
            found = measured(experiment, 3 if quick else 19, SIDES)
    return report(found)


def report(found: Mapping[str, Any]) -> dict[str, float]:
    """Print the table and return the figures."""
    seconds = {side: np.array(found["seconds"][side]) for side in SIDES}
    fill = float(np.median(found["fills"]))
    print(
        f"{BACKBONE}, {TILE} px, batches of {BATCH}, {found['threads']} threads; {len(seconds['fed'])} rounds of {STEPS} steps of each side"
    )
    for side, words in zip(SIDES, ("chips in memory", "fed by the pipeline"), strict=True):
        print(f"{words:<22}{STEPS * BATCH / np.median(seconds[side]):>10.1f} tiles/s")
    print(f"{'first epoch: filling':<22}{found['tiles'] / fill:>10.1f} tiles/s ({found['tiles']} tiles in {fill:.1f} s)")
    ratio = seconds["ours"] / seconds["fed"]
    figures = {
        "fed_ratio": np.median(ratio),
        "fed_ratio_quartile_1": np.quantile(ratio, 0.25),
        "fed_ratio_quartile_3": np.quantile(ratio, 0.75),
        "fill_tiles_per_s": found["tiles"] / fill,
        **{f"{side}_tiles_per_s": STEPS * BATCH / np.median(seconds[side]) for side in SIDES},
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def main() -> None:
    """Run from the command line."""
    options = command.parser("ingest", __doc__, quick="fewer tiles and rounds").parse_args()
    figures = run(quick=options.quick)
    low, high = (figures[f"fed_ratio_quartile_{part}"] for part in (1, 3))
    print(f"fed over memory       {figures['fed_ratio']:.3f} (quartiles of the rounds {low:.3f} and {high:.3f})")
    if options.json:
        command.end("ingest", figures, ("rayjobs", "ray", "torch", "timm"))


if __name__ == "__main__":
    main()
