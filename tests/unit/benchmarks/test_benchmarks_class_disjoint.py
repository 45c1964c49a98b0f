"""The class-disjoint study: no choice sees an unseen class, kept features change nothing, and a second run repeats nothing."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks import class_disjoint as study
from rayjobs.models.encoder import ModelSpec, build

CLASSES = [f"class {letter}" for letter in "abcdefghijklmno"]


class Listening:
    """A study that answers from a table and remembers what it was asked."""

    root, seeds = "nowhere", (0, 1)

    def __init__(self) -> None:
        self.images = study.Images(tiles=pa.table({"label": CLASSES}), pixels=np.zeros((15, 3, 8, 8), np.uint8))
        self.kept = study.Kept(study.Path("absent"))
        self.asked: list[tuple[study.Keys, set[str], set[str]]] = []

    def trained(self, key, settings, learn, ask):
        self.asked.append((key, set(learn), set(ask)))
        good = settings["loss"]["kind"] == "proxy_anchor" and settings["train.learning_rate"] == 1e-4
        return {"MAP@R": 0.6 if good else 0.5, "hit_rate@1": 0.9}

    def frozen(self, key, ask):
        self.asked.append((key, set(), set(ask)))
        return {"MAP@R": 0.4, "hit_rate@1": 0.8}

    def whitened(self, key, learn, ask):
        self.asked.append((key, set(learn), set(ask)))
        return {"MAP@R": 0.45, "hit_rate@1": 0.8}


@pytest.mark.parametrize("partition", range(3))
def test_choices_are_made_inside_the_training_classes(partition, capsys):
    listening = Listening()
    rows = study.open_unseen(listening, partition, baselines=False)
    opened = [(learn, ask) for key, learn, ask in listening.asked if key[1] == "open"]
    learned, (unseen, *_) = opened[0][0], [ask for _, ask in opened]
    assert (len(learned), len(unseen), learned | unseen) == (8, 7, set(CLASSES))
    assert all(ask == unseen and learn in (set(), learned) for learn, ask in opened)
    folds = [(learn, ask) for key, learn, ask in listening.asked if key[1] == "choose"]
    assert all(not (learn | ask) & unseen and not learn & ask and len(ask) == 4 for learn, ask in folds)
    assert {key[1] for key, _, _ in listening.asked[: len(folds)]} == {"choose"}, "all choices come before the unseen classes"
    assert rows[study.TRAINED]["MAP@R"] == 0.6
    assert "chose proxy_anchor" in capsys.readouterr().out


def test_kept_features_are_those_of_the_encoder(tmp_path):
    spec = ModelSpec(
        backbone="resnet10t", dim=16, bands=("r", "g", "b"), dtype="uint8", mean=(100,) * 3, std=(50,) * 3, tile_size=32, input_size=32,
        resolution_m=None,
    )  # fmt: skip
    encoder, kept = build(spec, 0).eval(), study.Kept(tmp_path / "kept.npz")
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (6, 3, 32, 32), np.uint8))
    with torch.inference_mode():
        expected = encoder(pixels)
        first = study.Ahead(encoder, kept)(pixels)
        kept.save()
        again = study.Ahead(encoder, study.Kept(tmp_path / "kept.npz"))(pixels.flip(0)).flip(0)
    torch.testing.assert_close(first, expected)
    assert torch.equal(first, again)


def test_what_was_measured_is_not_measured_again(tmp_path, capsys):
    path, calls = tmp_path / "record.jsonl", []

    def work():
        calls.append(1)
        return {"MAP@R": 0.5, "hit_rate@1": 0.75}

    for _ in range(2):
        assert study.Record(path, "one").once(("0", "open", "supcon"), work)["MAP@R"] == 0.5
    assert len(calls) == 1
    assert "0 open supcon" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="other settings"):
        study.Record(path, "other")


def test_a_study_is_known_by_its_settings(monkeypatch):
    first = study.study_of("pictures")
    assert study.study_of("pictures") == first
    monkeypatch.setitem(study.CANDIDATES, "supcon", [])
    assert study.study_of("pictures") != first


def test_map_at_r_of_perfect_and_of_even_embeddings():
    labels = np.repeat(["a", "b", "c"], 4)
    perfect = study.measure(np.repeat(np.eye(3, dtype=np.float32), 4, axis=0), labels)
    assert (perfect["MAP@R"], perfect["hit_rate@1"], set(perfect["by_class"])) == (1, 1, {"a", "b", "c"})
