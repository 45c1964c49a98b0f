"""Sweeps whose trials do not train, on a Ray of their own: `python -m tests.faults.sweeping FOLDER TRIALS [asha]`.

What trials report goes the real way, from a mailbox through the trial's listener to Ray Tune. They report faster than the sweep hears
them; or, with asha, one after the other, each worse than the one before, and still at work when they are ended.
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
from rayjobs.tune.fit import beside_this_process
from rayjobs.tune.space import parse
from rayjobs.tune.trial import Sweep, _Listener
from rayjobs.tune.trials import all_known

EPOCHS = 2
WORK_S = 5


class Slow(ray.tune.Callback):
    """As slow as a tracking server that is asked by Ray Tune itself."""

    def on_trial_result(self, iteration, trials, trial, result, **_) -> None:  # noqa: ARG002  Ray's form
        time.sleep(2 + iteration % 3)


def trial(config, sweep: Sweep) -> None:
    values = sweep.values(config)
    experiment = sweep.of(values)
    listener = _Listener(sweep, experiment, values, "")
    with listening(lambda message: listener.heard(**message), every_s=0.05) as mailbox:
        for epoch in range(1, EPOCHS + 1):
            mailbox.post.remote({"epoch": epoch, "metrics": {"val/recall@10": epoch / 10 - values["loss.margin"]}})
            time.sleep(WORK_S if experiment.tune.scheduler.kind == "asha" else 0)
        ray.get(mailbox.failed.remote())
    listener.end()


def main(folder: str, trials: int, scheduler: str = "none") -> None:
    raw = {
        "name": "fast",
        "workspace": {"uri": f"file:{folder}"},
        "rasters": {"sources": [{"kind": "images", "root": "x"}]},
        "train": {"epochs": EPOCHS},
        "tune": {
            "space": {"loss.margin": [(1 + number) / 1000 for number in range(trials)]},
            "scheduler": {"kind": scheduler, **({"reduction": 2} if scheduler == "asha" else {})},
        },
    }
    experiment = build(Experiment, raw)
    space = parse(experiment.tune.space)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    nobody = Console(sys.stdout, sys.stderr)
    with listening(dict) as mailbox:
        sweep = Sweep(experiment=experiment, space=space, objective="recall@10", validation=None, tags={}, mlflow=None, mailbox=mailbox)
        concurrent, callbacks = (1, []) if scheduler == "asha" else (2, [Slow()])
        trainable = ray.tune.with_resources(ray.tune.with_parameters(trial, sweep=sweep), beside_this_process(concurrent))
        asked = search.asked(experiment.tune, space, epochs=EPOCHS, concurrent=concurrent)
        run_config = ray.tune.RunConfig(name="ray", storage_path=f"{folder}/tune", verbose=0, callbacks=callbacks)
        results = ray.tune.Tuner(trainable, **asked, run_config=run_config).fit()
    found = all_known(experiment.open_workspace())
    nobody.result(
        json.dumps({"errors": len(results.errors), "ended": [one.ended for one in found], "history": [one.history for one in found]})
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
