"""The studies of self-supervision: nothing that trains has a label or is asked for, and fewer labels are some of the more."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import label_share, self_supervised
from benchmarks.study import Images, Record

CLASSES = [f"class {letter}" for letter in "abcdefghijklmno"]


def images(count: int, first: int = 0) -> Images:
    names = [CLASSES[number % 15] for number in range(count)]
    ids = [f"{(7 * number + first) % 1009:04}" for number in range(count)]
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None] + np.zeros((count, 3, 2, 2), np.uint8)
    return Images(tiles=pa.table({"tile_id": ids, "label": names, "number": list(range(count))}), pixels=pixels)


def test_what_trains_has_no_label_and_is_sorted_with_its_pixels():
    found = self_supervised.joined(images(30), images(20, first=3))
    ids = found.tiles["tile_id"].to_pylist()
    assert ids == sorted(ids)
    assert set(found.tiles["label"].to_pylist()) == {None}
    assert found.pixels[:, 0, 0, 0].tolist() == found.tiles["number"].to_pylist()


def test_what_is_asked_for_never_trains(monkeypatch, tmp_path):
    monkeypatch.setattr(self_supervised, "aid", lambda: images(45))
    monkeypatch.setattr(self_supervised, "vectors_of", lambda *_: np.eye(45, dtype=np.float32)[:21])
    trained = []
    monkeypatch.setattr(self_supervised, "trained", lambda settings, learn: trained.append((settings, set(learn))))
    asked = []
    monkeypatch.setattr(self_supervised, "measure", lambda _, labels: asked.append(set(labels)) or {"MAP@R": 0.5, "hit_rate@1": 0.5})
    record = Record(tmp_path / "found.jsonl", "study")
    for partition in range(3):
        self_supervised.measured(record, partition, 1, "simsiam")
    assert len(trained) == 3
    for (settings, learned), unseen in zip(trained, asked, strict=True):
        assert settings["train.seed"] == 1
        assert (len(learned), len(unseen), learned & unseen) == (8, 7, set())


@pytest.mark.parametrize("seed", [0, 1])
def test_fewer_labels_are_some_of_the_more(seed):
    def numbers(share: float) -> set[int]:
        settings = label_share.experiment_of("classifier", {"train.pool": {"share": share, "seed": seed}})
        return set(label_share.kept(images(300), settings).tiles["number"].to_pylist())

    shares = [numbers(share) for share in (0.05, 0.25, 1.0)]
    assert [len(found) for found in shares] == [30, 75, 300]
    assert shares[0] < shares[1] < shares[2]


def test_the_curve_of_labels_is_a_picture():
    found = {row: {0.05: [0.2, 0.3, 0.25], 1.0: [0.6, 0.7, 0.65]} for row in label_share.ROWS}
    assert label_share.drawn(found)[:8] == b"\x89PNG\r\n\x1a\n"
