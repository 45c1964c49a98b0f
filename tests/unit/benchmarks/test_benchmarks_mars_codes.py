"""The study of codes on Mars: its measurements beside a naive loop, no choice sees the fold that is tested, rows are means over seeds."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import mars_codes as study
from benchmarks.study import Images, Record

COUNT = 60


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    tiles = {
        "tile_id": [f"{number:03d}" for number in range(COUNT)],
        "label": rng.choice(["0", "1", "2", "6"], COUNT).tolist(),
        "observation": [f"o{number // 4}" for number in range(COUNT)],
    }
    return Images(tiles=pa.table(tiles), pixels=np.zeros((COUNT, 1, 2, 2), np.uint8))


def naive(vectors, labels, observations, query, *, kept, without_own):
    """AP@64 over min(R, 64) and over what is found, by a loop; None where nothing is relevant."""
    able = [other for other in kept if other != query and not (without_own and observations[other] == observations[query])]
    ranked = sorted(able, key=lambda other: -float(vectors[query] @ vectors[other]))[:64]
    relevant, hits, total = sum(labels[other] == labels[query] for other in able), 0, 0.0
    for rank, other in enumerate(ranked, 1):
        if labels[other] == labels[query]:
            hits += 1
            total += hits / rank
    return (total / min(relevant, 64), total / max(hits, 1)) if relevant else None


def test_what_is_measured_is_what_a_loop_measures(images):
    vectors = study.unit(np.random.default_rng(1).normal(size=(COUNT, 5)).astype(np.float32))
    labels, observations = images.labels, images.tiles["observation"].to_pylist()
    found = study.measure(vectors, images)
    landforms = [number for number in range(COUNT) if labels[number] not in study.REST]
    for part, kept, without_own in (
        ("all", range(COUNT), False),
        ("landforms", landforms, False),
        ("other observations", range(COUNT), True),
    ):
        wanted = {query: naive(vectors, labels, observations, query, kept=kept, without_own=without_own) for query in kept}
        wanted = {f"{query:03d}": values for query, values in wanted.items() if values}
        for place, metric in enumerate(study.METRICS):
            values = found["by_tile"][part][metric]
            assert values == pytest.approx({tile: both[place] for tile, both in wanted.items()}, abs=1e-5)
    assert found["mAP@64/min"] == pytest.approx(np.mean(list(found["by_tile"]["all"]["mAP@64/min"].values())))


def test_no_choice_sees_the_fold_that_is_tested(images, tmp_path, monkeypatch):
    fold, seen = np.arange(COUNT) // 4 % study.FOLDS, []
    made = study.Study(images=images, fold=fold, record=Record(tmp_path / "kept.jsonl", "this", study.METRICS), seeds=(0,))

    def head(self, name, settings, of, features, *, on, target=None):
        shown = [self.learned_from(of), self.tested(on), *([] if target is None else [target])]
        if not name.startswith("hash"):
            assert on == of + 1
            assert not any((part & self.tested(of)).any() for part in shown)
        assert not (self.learned_from(of) & self.tested(on)).any()
        assert target is None or not (target & self.tested(of)).any()
        seen.append(name)
        entry = {"key": [name, str(of)], study.METRICS[0]: float("push 1" in name)}
        self.record.entries[name, str(of)] = entry

    monkeypatch.setattr(study.Study, "head", head)
    for features in ("turned", "changed"):
        monkeypatch.setattr(study.Study, features, np.zeros((COUNT, 1, 4), np.float32))
    assert made.choose(4) == study.BASE | study.CANDIDATES["triplet, push 1"]
    made.heads()
    assert seen.count("hash 128, seed 0") == study.FOLDS


def test_a_row_is_the_mean_of_its_seeds_and_codes_stand_beside_their_floats():
    def of(value):
        return {part: {metric: {"a": value} for metric in study.METRICS} for part in study.PARTS}

    entries = {
        ("hash 128, seed 0", "0"): {"by_tile": of(0.2), "float": of(0.5)},
        ("hash 128, seed 1", "0"): {"by_tile": of(0.4), "float": of(0.7)},
        ("triplet, seed 0", "0"): {"by_tile": of(0.1), "codes": of(0.3), "float": of(0.6)},
        ("choice, any", "0"): {"by_tile": of(0.9)},
    }
    rows = study.rows_of(entries)
    assert {name: [row["all"]["mAP@64/min"].get("a") for row in pair] for name, pair in rows.items()} == {
        "hash 128": [pytest.approx(0.3), pytest.approx(0.6)],
        "triplet": [0.1, None],
        "hash 128, on triplet": [0.3, 0.6],
    }
    json.dumps(rows)
