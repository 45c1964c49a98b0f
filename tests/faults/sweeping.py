"""Trials that report faster than a sweep hears them, on a Ray of their own: `python -m tests.faults.sweeping FOLDER TRIALS`.

What trials report goes the real way, from a mailbox through the trial's listener to Ray Tune; what is left out is the training.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ["RAY_AUTH_MODE"] = "disabled"

import ray
import ray.tune

from rayjobs.cluster.mailbox import listening
from rayjobs.config import build
from rayjobs.console import Console
from rayjobs.experiment import Experiment
from rayjobs.tune import search
from rayjobs.tune.job import _beside_this_process
from rayjobs.tune.space import parse
from rayjobs.tune.trial import Sweep, _known, _Listener
from rayjobs.tune.trials import all_known

EPOCHS = 2


class Slow(ray.tune.Callback):
    """As slow as a tracking server that is asked by Ray Tune itself."""

    def on_trial_result(self, iteration, trials, trial, result, **_) -> None:  # noqa: ARG002  Ray's form
        time.sleep(2 + iteration % 3)


def trial(config, sweep: Sweep) -> None:
    values = sweep.values(config)
    experiment = sweep.of(values)
    listener = _Listener(sweep, experiment, _known(experiment, sweep, values))
    with listening(lambda message: listener.heard(**message), every_s=0.05) as mailbox:
        for epoch in range(1, EPOCHS + 1):
            mailbox.post.remote({"epoch": epoch, "metrics": {"val/recall@10": epoch / 10}})
        ray.get(mailbox.failed.remote())
    listener.end(EPOCHS)


def main(folder: str, trials: int) -> None:
    raw = {
        "name": "fast",
        "workspace": {"uri": f"file:{folder}"},
        "rasters": {"sources": [{"kind": "images", "root": "x"}]},
        "train": {"epochs": EPOCHS},
        "tune": {"space": {"loss.margin": [(1 + number) / 1000 for number in range(trials)]}},
    }
    experiment = build(Experiment, raw)
    space = parse(experiment.tune.space)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    nobody = Console(sys.stdout, sys.stderr)
    with listening(dict) as mailbox:
        sweep = Sweep(experiment=experiment, space=space, objective="recall@10", validation=None, tags={}, mailbox=mailbox)
        trainable = ray.tune.with_resources(ray.tune.with_parameters(trial, sweep=sweep), _beside_this_process())
        asked = search.asked(experiment.tune, space, epochs=EPOCHS, concurrent=2)
        run_config = ray.tune.RunConfig(name="ray", storage_path=f"{folder}/tune", verbose=0, callbacks=[Slow()])
        results = ray.tune.Tuner(trainable, **asked, run_config=run_config).fit()
    found = all_known(experiment.open_workspace())
    nobody.result(
        json.dumps({"errors": len(results.errors), "ended": [one.ended for one in found], "history": [one.history for one in found]})
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
