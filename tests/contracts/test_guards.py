"""What every guard of mining promises: a switch of its own, a count under its name, and the answers of a rule written out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from rayjobs.config import build
from rayjobs.experiment import Experiment
from rayjobs.metric import guards as family
from rayjobs.metric.mining import mine
from rayjobs.metric.ranking import ExactRanking
from rayjobs.train.ground import Ground, guards_of

COUNT, NEGATIVES, DEPTH = 150, 4, 60

SWITCHES = {
    "place": (True, False, {}),
    "overlap": (True, False, {}),
    "distance": (True, False, {}),
    "label": (True, False, {"supervision": "labels"}),
    "proportions": (True, False, {"supervision": "proportions"}),
    "max_similarity": (0.5, None, {}),
    "beyond_positives": (True, False, {}),
    "max_per_scene": (1, None, {}),
}
"""By guard: the switch on and off, and what `train` must say besides. The switch has the guard's name, but for proportions."""
every_guard = pytest.mark.parametrize("name", SWITCHES)


@pytest.fixture(scope="module")
def world():
    """Ground, vectors, and the similarity of each tile's nearest known positive; every guard finds something to refuse."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(COUNT, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ground = Ground(
        tile_ids=[f"{number:03}" for number in range(COUNT)],
        positions=np.column_stack([rng.uniform(0, 20, (COUNT, 2)), np.zeros(COUNT)]),
        sizes=rng.uniform(0.5, 1.5, COUNT),
        reaches=rng.uniform(0.5, 1.5, COUNT),
        places=rng.integers(0, 20, COUNT),
        scenes=rng.integers(0, 5, COUNT),
        dates=np.zeros(COUNT, np.int64),
        labels=rng.integers(-1, 3, COUNT),
        fractions=rng.dirichlet([0.5, 0.5, 0.5], COUNT).astype(np.float32),
    )
    ceilings = rng.uniform(0.3, 0.9, COUNT).astype(np.float32)
    ceilings[::7] = np.inf
    return ground, vectors, ceilings


def experiment(on=(), **train):
    settings = {name: of_guard[name in on] for name, of_guard in ((n, (off, yes)) for n, (yes, off, _) in SWITCHES.items())}
    settings["label"] = settings["label"] or settings.pop("proportions")
    settings.pop("proportions", None)
    return build(
        Experiment,
        {
            "name": "x",
            "rasters": {"sources": [{"kind": "files", "uris": ["x.tif"]}]},
            "tiles": {"min_neg_dist": 4.0, "max_neg_dist": 15.0},
            "mining": settings,
            "train": train,
        },
    )


class Pair(NamedTuple):
    """An anchor and a candidate."""

    ground: Ground
    anchor: int
    candidate: int
    score: float
    ceiling: float
    chosen: list

    def of(self, name):
        values = getattr(self.ground, name)
        return values[self.anchor], values[self.candidate]

    @property
    def apart(self):
        one, other = self.of("positions")
        return float(np.linalg.norm(one - other))

    @property
    def shared(self):
        return sum(min(float(one), float(other)) for one, other in zip(*self.of("fractions"), strict=True))


RULES = {
    "place": lambda pair: len(set(pair.of("places"))) == 1,
    "overlap": lambda pair: pair.apart < sum(pair.of("reaches")),
    "distance": lambda pair: not 4 <= pair.apart / max(pair.of("sizes")) <= 15,
    "label": lambda pair: pair.of("labels") in {(0, 0), (1, 1), (2, 2)},
    "proportions": lambda pair: pair.shared > 0.5 + 1e-5,
    "max_similarity": lambda pair: pair.score > 0.5,
    "beyond_positives": lambda pair: pair.score > pair.ceiling,
    "max_per_scene": lambda pair: pair.of("scenes")[1] in pair.ground.scenes[pair.chosen],
}
"""Each guard once more, for one pair of tiles."""


def naive(names, ground, vectors, ceilings):
    """One anchor and one candidate at a time: what is chosen, and what each guard is the first to refuse."""
    exact = vectors.astype(np.float64)
    found, refused = [], dict.fromkeys(names, 0)
    for anchor in range(COUNT):
        order = sorted((c for c in range(COUNT) if c != anchor), key=lambda c, a=anchor: (-(exact[a] @ exact[c]), c))
        chosen: list[int] = []
        for candidate in order[:DEPTH]:
            if len(chosen) == NEGATIVES:
                break
            pair = Pair(ground, anchor, candidate, exact[anchor] @ exact[candidate], ceilings[anchor], chosen)
            refuser = next((name for name in names if RULES[name](pair)), None)
            if refuser is None:
                chosen.append(candidate)
            else:
                refused[refuser] += 1
        found.append(chosen + [-1] * (NEGATIVES - len(chosen)))
    return found, refused


def mined(guards, vectors, ceilings, block=COUNT):
    ranking = ExactRanking(torch.from_numpy(vectors))
    cuts = [slice(start, min(start + block, COUNT)) for start in range(0, COUNT, block)]
    parts = [mine(ranking, cut, guards, negatives=NEGATIVES, max_candidates=DEPTH, ceilings=ceilings[cut]) for cut in cuts]
    counts = {guard.name: sum(part.refused[guard.name] for part in parts) for guard in guards}
    return [row for part in parts for row in part.candidates.tolist()], counts


def test_the_switches_are_those_of_all_guards():
    guards = {
        one.name for one in vars(family).values() if isinstance(one, type) and one.__name__.endswith("Guard") and hasattr(one, "name")
    }
    assert set(SWITCHES) == set(RULES) == guards


@every_guard
def test_a_switch_turns_its_guard_on_and_no_other(name, world):
    ground, *_ = world
    assert [one.name for one in guards_of(experiment({name}, **SWITCHES[name][2]), ground)] == [name]
    assert guards_of(experiment((), **SWITCHES[name][2]), ground) == []


@every_guard
def test_a_guard_refuses_what_its_rule_does_and_counts_it_under_its_name(name, world):
    ground, vectors, ceilings = world
    guards = guards_of(experiment({name}, **SWITCHES[name][2]), ground)
    found, counts = mined(guards, vectors, ceilings)
    assert (found, counts) == naive([name], ground, vectors, ceilings)
    assert counts[name] > 20
    assert mined([], vectors, ceilings) == naive([], ground, vectors, ceilings)


@pytest.mark.parametrize("supervision", ["geography", "labels", "proportions"])
@pytest.mark.parametrize("block", [COUNT, 32])
def test_all_together_count_each_candidate_once_for_the_first_that_refuses_it(supervision, block, world):
    ground, vectors, ceilings = world
    guards = guards_of(experiment(set(SWITCHES), supervision=supervision), ground)
    names = [one.name for one in guards]
    assert names == [name for name in SWITCHES if SWITCHES[name][2].get("supervision", supervision) == supervision]
    assert mined(guards, vectors, ceilings, block) == naive(names, ground, vectors, ceilings)
