"""Which keys matter: told of made-up sweeps in which that is known."""

from __future__ import annotations

import numpy as np

from rayjobs.tune.importance import importance


def made(count=60, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "model.dim": int(rng.choice([64, 128, 256])),
            "train.learning_rate": float(10 ** rng.uniform(-4, -1)),
            "loss.kind": str(rng.choice(["triplet", "ntxent"])),
            "train.epochs": 4,
        }
        for _ in range(count)
    ]


def test_the_key_that_decides_has_all_the_share():
    values = made()
    found = importance(values, [trial["model.dim"] / 256 for trial in values])
    assert next(iter(found)) == "model.dim"
    assert found["model.dim"] > 0.9
    assert "train.epochs" not in found, "all trials have the same"
    np.testing.assert_allclose(sum(found.values()), 1)


def test_words_count_as_numbers_do():
    values = made()
    found = importance(values, [float(trial["loss.kind"] == "ntxent") for trial in values])
    assert found["loss.kind"] > 0.9


def test_a_key_that_some_trials_do_not_have_can_matter():
    rng = np.random.default_rng(1)
    values = [
        {"loss.kind": "triplet", "loss.margin": float(rng.uniform(0, 1))} if number % 2 else {"loss.kind": "magnet"} for number in range(80)
    ]
    found = importance(values, [trial.get("loss.margin", 0.5) for trial in values])
    assert found["loss.margin"] > 0.8


def test_few_trials_or_equal_ones_tell_nothing():
    assert importance(made(5), [1.0, 2.0, 3.0, 4.0, 5.0]) == {}
    assert importance([{"model.dim": 64}] * 10, list(range(10))) == {}
    assert importance(made(20), [0.5] * 20) == {}
