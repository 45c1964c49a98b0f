"""The page of a sweep: whole, without anything from elsewhere, and not to be broken out of."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from rayjobs.config import build
from rayjobs.experiment import Experiment
from rayjobs.tune.finals import Final
from rayjobs.tune.report import files, report_of, shown, version_of
from rayjobs.tune.trials import Trial

HOSTILE = "<script>alert(1)</script>"


def trial(number, *, ended="finished", history=None, **values):
    return Trial(run=f"s-{number}", values=values, history=history if history is not None else {1: 0.1, 2: 0.1 + number / 100}, ended=ended)


def final(seed, value):
    figure = {"value": value, "low": value - 0.1, "high": value + 0.1}
    protocol = {"queries": 10, "gallery": 12, "interval": "95 %, of blocks"}
    return Final(
        run=f"s-8-seed-{seed}", seed=seed, metrics={"recall@10": figure}, differences={"random-init": figure}, protocol=protocol, page="p"
    )


@pytest.fixture
def experiment(tmp_path):
    raw = {"name": "s", "workspace": {"uri": f"file:{tmp_path}"}, "rasters": {"sources": [{"kind": "images", "root": "x"}]}}
    return build(Experiment, raw)


@pytest.fixture
def trials():
    found = [trial(number, loss={"kind": "triplet", "margin": number / 10}, **{"model.dim": 64 * (1 + number % 2)}) for number in range(8)]
    found.append(trial(8, loss={"kind": HOSTILE}, **{"model.dim": 64}))
    found.append(trial(9, ended="pruned", history={1: 0.05}, loss={"kind": "ntxent"}, **{"model.dim": 128}))
    found.append(Trial(run="s-10", values={"model.dim": 128}, ended="failed", failure=f"no memory {HOSTILE}"))
    return found


class Seen(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_says_what_the_report_says_and_nothing_runs_in_it(experiment, trials):
    report = report_of(experiment, "set", trials, trials[8], [final(0, 0.4), final(1, 0.6)])
    seen = Seen(files(experiment, report)["sweep.html"].decode())
    text = " ".join(seen.text)
    assert "script" not in seen.tags
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in seen.sources)
    assert seen.tags.count("img") == 4
    for entry in report["trials"]:
        assert entry["run"] in text
        assert entry["value"] is None or f"{entry['value']:.3f}" in text
    assert HOSTILE in text
    assert "mean of 2 seeds (0.4000 to 0.6000)" in text
    assert re.search(r"8 finished|9 finished", text)


def test_the_report_tells_how_trials_ended_and_what_the_best_is_worth(experiment, trials):
    report = report_of(experiment, "set", trials, trials[8], [final(0, 0.4), final(1, 0.6)])
    assert report["counts"] == {"finished": 9, "pruned": 1, "failed": 1}
    assert report["final"] == {"seeds": 2, "mean": 0.5, "least": 0.4, "greatest": 0.6}
    assert [entry["ended"] for entry in report["trials"]][-2:] == ["pruned", "failed"]
    lines = shown(report)
    assert lines[0].startswith("0.1800  s-8")
    assert lines[-1].startswith("recall@10 on test: 0.5000, mean of 2 seeds")
    assert version_of(report) == version_of(report_of(experiment, "set", trials, trials[8], [final(0, 0.4), final(1, 0.6)]))
    assert version_of(report) != version_of(report_of(experiment, "set", trials, trials[8], [final(0, 0.4)]))


def test_a_sweep_of_one_trial_without_finals_has_a_page(experiment, trials):
    report = report_of(experiment, "set", trials[:1], trials[0], [])
    text = " ".join(Seen(files(experiment, report)["sweep.html"].decode()).text)
    assert "not trained anew" in text
    assert "Too few trials" in text
    assert report["final"] is None
