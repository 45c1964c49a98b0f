"""Search spaces: what they may say, what is drawn of them, and that a draw makes the same values again."""

from __future__ import annotations

import itertools

import numpy as np
import optuna
import pytest

from rayjobs.config import build
from rayjobs.errors import ConfigError
from rayjobs.tune.search import _Suggest
from rayjobs.tune.space import Chance, Replay, every_draw, overrides, parse, random_draws

CONDITIONAL = {
    "loss": [
        {"kind": "triplet", "margin": [0.1, 0.2]},
        {"kind": "ntxent", "temperature": {"loguniform": [0.01, 1.0]}},
        {"kind": "magnet"},
    ],
    "model": {"dim": [64, 128]},
    "train.epochs": {"integer": [1, 3]},
    "train.learning_rate": 0.01,
}


def test_a_grid_is_the_product_of_all_that_is_listed():
    space = parse({"loss": [{"kind": "triplet", "margin": [0.1, 0.2]}, {"kind": "magnet"}], "model.dim": [64, 128], "train.epochs": 3})
    found = [overrides(space, Replay(draw)) for draw in every_draw(space)]
    losses = [{"kind": "triplet", "margin": 0.1}, {"kind": "triplet", "margin": 0.2}, {"kind": "magnet"}]
    assert found == [{"loss": loss, "model.dim": dim, "train.epochs": 3} for loss, dim in itertools.product(losses, [64, 128])]


def test_dotted_keys_and_sections_are_the_same():
    assert parse({"model": {"dim": [1, 2]}}) == parse({"model.dim": [1, 2]})


def test_a_list_within_a_list_is_a_value():
    space = parse({"train.augment.crop_scale": [[0.5, 1.0], None]})
    found = [overrides(space, Replay(draw)) for draw in every_draw(space)]
    assert found == [{"train.augment.crop_scale": value} for value in ([0.5, 1.0], None)]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_drawn_by_chance_lies_within_and_is_replayed(seed):
    space = parse(CONDITIONAL)
    for draw in random_draws(space, 20, np.random.default_rng(seed)):
        values = overrides(space, Replay(draw))
        assert values["model.dim"] in {64, 128}
        assert values["train.epochs"] in {1, 2, 3}
        assert values["train.learning_rate"] == 0.01
        if values["loss"]["kind"] == "ntxent":
            assert 0.01 <= values["loss"]["temperature"] <= 1.0
            assert set(draw) == {"loss", "loss[1].temperature", "model.dim", "train.epochs"}
        else:
            assert "temperature" not in values["loss"], "a key that another kind has"


def test_draws_by_chance_differ_and_end_where_the_space_does():
    space = parse({"model.dim": [1, 2], "train.epochs": {"integer": [1, 2]}})
    found = [overrides(space, Replay(draw)) for draw in random_draws(space, 50, np.random.default_rng(0))]
    assert sorted(map(str, found)) == sorted({str(values) for values in found})
    assert len(found) == 4


def test_equal_ratios_come_equally_often():
    space = parse({"train.learning_rate": {"loguniform": [1e-4, 1.0]}})
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(2000):
        chance = Chance(rng)
        drawn.append(overrides(space, chance)["train.learning_rate"])
    shares = np.histogram(np.log10(drawn), bins=4, range=(-4, 0))[0] / 2000
    np.testing.assert_allclose(shares, 0.25, atol=0.04)


def test_optuna_draws_of_the_space_what_a_replay_gives():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space, kinds = parse(CONDITIONAL), set()
    for _ in range(30):
        trial = study.ask()
        draw = _Suggest(space)(trial)["draw"]
        values = overrides(space, Replay(draw))
        kinds.add(values["loss"]["kind"])
        assert trial.params == draw
        assert set(values) == set(CONDITIONAL) - {"model"} | {"model.dim"}
    assert kinds == {"triplet", "ntxent", "magnet"}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({}, "nothing to choose"),
        ({"model.dim": 64}, "nothing to choose"),
        ({"model.dim": []}, "model.dim is an empty list"),
        ({"model": {"dim": [1, 2]}, "model.dim": [3, 4]}, "model.dim twice"),
        ({"loss": [{"kind": "triplet", "margin": {"uniform": [1]}}]}, r"loss\[0\].margin: uniform takes \[low, high\]"),
        ({"train.learning_rate": {"uniform": [2, 1]}}, "low < high"),
        ({"train.learning_rate": {"uniform": [True, 3]}}, "low < high"),
        ({"train.learning_rate": {"uniform": [0, float("inf")]}}, "low < high"),
        ({"train.learning_rate": {"loguniform": [0, 1]}}, "begins above 0"),
        ({"train.epochs": {"integer": [1, 2.5]}}, "whole numbers"),
    ],
)
def test_what_is_no_space_is_refused_by_its_key(raw, said):
    with pytest.raises(ConfigError, match=said):
        parse(raw)


def test_a_grid_refuses_what_has_no_end():
    with pytest.raises(ConfigError, match=r"loss\[1\].temperature is a range"):
        every_draw(parse(CONDITIONAL))


def test_the_space_that_is_shipped_sweeps_loss_margin_and_dimension():
    from rayjobs.tune.section import TuneSection

    space = parse(build(TuneSection, {}).space)
    values = [overrides(space, Replay(draw)) for draw in every_draw(space)]
    assert len({value["loss"]["kind"] for value in values}) >= 3
    assert len({value["loss"].get("margin") for value in values}) >= 3
    assert len({value["model.dim"] for value in values}) >= 2
    assert len(values) >= 12
