"""One class of aerial scenes against the rest, few of them: what does choosing the tiles to label gain over drawing them?

A searcher has one picture of what is sought, and at most 5 % of the tiles show it. For each class and seed, 589 pictures of AID (29 of the
class, 40 of each other) may be labelled by a simulated oracle, and 294 others (14 and 20) are held out. The first 20 labels are the same
for every strategy: the neighbours of the one picture, and some drawn. Then rounds of 20 follow, up to 200, each after a head
(`rayjobs.retrieval.head`) was trained anew on frozen embeddings; what is measured is its average precision on the held-out pictures.

Classes stand in the order of the alphabet: on the second, the fourth and so on, the strategy of greatest mean average precision at half of
the labels is chosen; on the others it alone is compared, paired, with random at all of them. The resampling unit is the class. Every
measurement is appended to a file of JSON lines; what stands there is not done again.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score

from benchmarks import class_disjoint, command
from benchmarks.study import DATA, Images, Record, images_of, interval_over, vectors_of
from rayjobs.evaluate.pictures.look import COLOURS, look, png
from rayjobs.labels.acquisition.batch import next_tiles
from rayjobs.labels.acquisition.seeds import seed_set
from rayjobs.labels.acquisition.stopping import advise, kappa
from rayjobs.retrieval.head import train_head

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

POOL, POOL_SOUGHT, HELD, HELD_SOUGHT = 40, 29, 20, 14
"""Pictures of each class, and of the class sought, that may be labelled, and that are held out."""
FIRST, ROUND, LAST = 20, 20, 200
"""Labels at the beginning, of each round, and at the end."""
SEEDS, CHOOSING_SEEDS = range(10), range(3)
"""Of the classes that test, and of those that choose."""
SHARE = 0.8
"""Of the first labels that are neighbours of the one picture."""
SOUGHT = 1
RANDOM = "random"
CANDIDATES: Mapping[str, dict[str, Any]] = {
    RANDOM: {"strategy": "random"},
    "random, balanced pool": {"strategy": "random", "rebalance": True},
    "random, core_set": {"strategy": "random", "diversity": "core_set"},
    **{
        f"{strategy}{'' if diversity == 'top_n' else f', {diversity}'}": {"strategy": strategy, "diversity": diversity}
        for strategy in ("least_confidence", "positive")
        for diversity in ("top_n", "proximity", "cluster", "core_set")
    },
    "uncertain_balanced": {"strategy": "uncertain_balanced"},
    "gaussian": {"strategy": "gaussian"},
}
"""By name, what is tried. Of two classes margin and entropy choose as least_confidence does."""
BUDGETS = tuple(range(FIRST, LAST + 1, ROUND))
HALF = LAST // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is labelled and measured of one class and seed; the same for every strategy."""

    pool: np.ndarray[Any, Any]
    """(589,) pictures that may be labelled."""
    held: np.ndarray[Any, Any]
    """(294,) pictures that are measured on."""
    first: np.ndarray[Any, Any]
    """(20,) indices in `pool` that are labelled at the beginning."""


def task_of(labels: np.ndarray[Any, Any], vectors: np.ndarray[Any, Any], name: str, seed: int) -> Task:
    """Divide the pictures, and choose the first labels."""
    rng = np.random.default_rng([seed, *name.encode()])
    pool: list[int] = []
    held: list[int] = []
    for each in np.unique(labels):
        drawn = rng.permutation(np.flatnonzero(labels == each)).tolist()
        sought = each == name
        pool += drawn[: POOL_SOUGHT if sought else POOL]
        held += drawn[POOL : POOL + (HELD_SOUGHT if sought else HELD)]
    example = pool[next(place for place, picture in enumerate(pool) if labels[picture] == name)]
    chosen = np.array(pool)
    first = seed_set(vectors[chosen], vectors[[example]], FIRST, share=SHARE, rng=rng)
    return Task(pool=chosen, held=np.array(held), first=first)


class Heads:
    """Heads of one task by what was labelled: strategies begin alike, and some go on alike."""

    def __init__(self, task: Task, vectors: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> None:
        """Take the task, all embeddings, and which pictures are of the class sought."""
        self.pool, self.answers = vectors[task.pool], truth[task.pool].astype(np.int64)
        self._held, self._asked = vectors[task.held], truth[task.held]
        self._found: dict[bytes, tuple[np.ndarray[Any, Any], float]] = {}

    def after(self, known: np.ndarray[Any, Any], seed: int) -> tuple[np.ndarray[Any, Any], float]:
        """Return probabilities (pool, 2) and the average precision on held-out pictures of a head trained on those that are known."""
        key = known.tobytes()
        if key not in self._found:
            head = train_head(self.pool[known], self.answers[known], 2, seed=seed).head
            precision = float(average_precision_score(self._asked, head.probabilities(self._held)[:, SOUGHT]))
            self._found[key] = head.probabilities(self.pool), precision
        return self._found[key]


def labelled_by(task: Task, heads: Heads, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Label round by round; return average precision, tiles found and expected to be left, and agreement, at each of `BUDGETS`."""
    rng = np.random.default_rng(seed)
    pool, answers = heads.pool, heads.answers
    known = np.zeros(len(pool), bool)
    known[task.first] = True
    found: dict[str, list[float]] = {"AP": [], "found": [], "expected_left": [], "left": [], "agreement": []}
    before: np.ndarray[Any, Any] | None = None
    for budget in BUDGETS:
        probabilities, precision = heads.after(known, seed)
        agreement = None if before is None else kappa(before, probabilities.argmax(1))
        before = probabilities.argmax(1)
        have = int(answers[known].sum())
        advice = advise([], agreement, probabilities[~known, SOUGHT], have)
        row = (precision, have, round(advice.expected_left, 3), int(answers[~known].sum()), advice.agreement or 0.0)
        for name, value in zip(found, row, strict=True):
            found[name].append(value)
        if budget < LAST:
            (left,) = np.nonzero(~known)
            known[left[next_tiles(probabilities[left], pool[left], pool[known], ROUND, sought=SOUGHT, rng=rng, **settings)]] = True
    return {**found, f"AP@{HALF}": found["AP"][BUDGETS.index(HALF)], f"AP@{LAST}": found["AP"][-1]}


def halves(classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the classes that choose the strategy, and those that test it."""
    ordered = sorted(classes)
    return ordered[1::2], ordered[::2]


Curves = dict[str, np.ndarray[Any, Any]]
"""(classes, seeds, budgets) average precision, by strategy."""


def curves(
    record: Record, images: Images, vectors: np.ndarray[Any, Any], classes: Sequence[str], names: Sequence[str], seeds: Sequence[int]
) -> Curves:
    """Measure strategies on some classes."""
    found = {strategy: np.empty((len(classes), len(seeds), len(BUDGETS))) for strategy in names}
    for place, (name, seed) in enumerate(itertools.product(classes, seeds)):
        task = task_of(images.labels, vectors, name, seed)
        heads = Heads(task, vectors, images.labels == name)
        for strategy in names:
            work = functools.partial(labelled_by, task, heads, CANDIDATES[strategy], seed)
            found[strategy][divmod(place, len(seeds))] = record.once((name, strategy, f"{seed}"), work)["AP"]
    return found


def show_choice(found: Curves) -> str:
    """Print what each strategy reaches on the choosing classes, and return the best at half of the labels."""
    print(f"{'strategy':<30}" + "".join(f"{budget:>9}" for budget in BUDGETS) + f"{f'AP@{HALF} minus random AP@{LAST}':>34}")
    final = found[RANDOM][..., -1].mean(1)
    for strategy, values in found.items():
        gap = interval_over((values[..., BUDGETS.index(HALF)].mean(1) - final).tolist())
        row = "".join(f"{value:>9.3f}" for value in values.mean((0, 1)))
        print(f"{strategy:<30}{row}{f'{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]':>34}")
    return max(found, key=lambda strategy: float(found[strategy][..., BUDGETS.index(HALF)].mean()))


def enough(values: np.ndarray[Any, Any], final: float) -> int | None:
    """Return the fewest labels at which a class's mean curve, (budgets,), reaches a figure and stays there; None where it does not."""
    (below,) = np.nonzero(values < final)
    place = int(below[-1]) + 1 if len(below) else 0
    return BUDGETS[place] if place < len(BUDGETS) else None


def show_test(found: Curves, chosen: str, classes: Sequence[str]) -> dict[str, float]:
    """Print and return what the chosen strategy is worth on the testing classes."""
    ours, theirs = found[chosen].mean(1), found[RANDOM].mean(1)
    print(f"\n{'class':<20}{f'random AP@{LAST}':>16}{f'ours AP@{HALF}':>16}{f'ours AP@{LAST}':>16}{'labels enough':>16}")
    for name, mine, other in zip(classes, ours, theirs, strict=True):
        print(f"{name:<20}{other[-1]:>16.3f}{mine[BUDGETS.index(HALF)]:>16.3f}{mine[-1]:>16.3f}{enough(mine, other[-1]) or '-':>16}")
    figures: dict[str, float] = {}
    gaps = {
        f"half_minus_final_of_{RANDOM}": ours[:, BUDGETS.index(HALF)] - theirs[:, -1],
        "at_half": (ours - theirs)[:, BUDGETS.index(HALF)],
        "at_end": (ours - theirs)[:, -1],
    }
    for name, values in gaps.items():
        gap = interval_over(values.tolist())
        print(f"{name}: {gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]; above 0 in {(values > 0).sum()} of {len(values)} classes")
        figures |= {name: gap.value, f"{name}_low": gap.low, f"{name}_high": gap.high}
    reached = enough(ours.mean(0), float(theirs[:, -1].mean()))
    print(f"{chosen} reaches random's final {theirs[:, -1].mean():.3f} at {reached} labels of {LAST}")
    return {name: round(value, 4) for name, value in {**figures, "labels_enough": float(reached or "nan")}.items()}


def drawn(choosing: Curves, testing: Curves, chosen: str) -> bytes:
    """Return a PNG of average precision over labels: all strategies on the choosing classes, the chosen one and random on the others."""
    with look():
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for strategy, values in choosing.items():
            shown = {chosen: COLOURS[0], RANDOM: COLOURS[1]}.get(strategy, "#c8c8c8")
            left.plot(
                BUDGETS, values.mean((0, 1)), color=shown, linewidth=1.8 if shown in COLOURS else 0.9, zorder=2 if shown in COLOURS else 1
            )
        for number, strategy in enumerate((chosen, RANDOM)):
            bands = [interval_over(column.tolist()) for column in testing[strategy].mean(1).T]
            right.plot(BUDGETS, [band.value for band in bands], color=COLOURS[number], marker="o", markersize=3, label=strategy)
        gaps = [interval_over(column.tolist()) for column in (testing[chosen] - testing[RANDOM]).mean(1).T]
        middle = testing[RANDOM].mean((0, 1))
        right.fill_between(
            BUDGETS,
            [base + gap.low for base, gap in zip(middle, gaps, strict=True)],
            [base + gap.high for base, gap in zip(middle, gaps, strict=True)],
            color=COLOURS[0],
            alpha=0.18,
            linewidth=0,
            label="95 % of the paired difference, over classes",
        )
        right.axhline(float(middle[-1]), color=COLOURS[1], linewidth=0.8, linestyle=":")
        left.set(
            title=f"{len(choosing[RANDOM])} classes that choose (grey: other strategies)",
            xlabel="labels",
            ylabel="average precision, held out",
        )
        right.set(title=f"{len(testing[RANDOM])} other classes", xlabel="labels")
        right.legend(frameon=False, fontsize=8, loc="lower right")
        return png(figure)


def embedded(root: str, path: Path) -> tuple[Images, np.ndarray[Any, Any]]:
    """Return the pictures and their embeddings by the frozen ImageNet backbone of the study of unseen classes, kept in a file."""
    experiment = class_disjoint.experiment_of(root, {})
    images = images_of(experiment)
    if not path.exists():
        np.save(path, vectors_of(class_disjoint.bare(experiment, pretrained=True), images.pixels))
    return images, np.load(path)


def study_of(images: Images) -> str:
    """Return a digest of all that decides the figures."""
    settings = [CANDIDATES, POOL, POOL_SOUGHT, HELD, HELD_SOUGHT, FIRST, ROUND, LAST, SHARE, images.tiles["tile_id"].to_pylist()]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def main() -> None:
    """Run from the command line."""
    parser = command.parser("label_efficiency", __doc__, quick="two seeds")
    parser.add_argument(
        "--out", type=Path, default=Path("label_efficiency.jsonl"), help="file of measurements, which a second run goes on from"
    )
    parser.add_argument("--classes", nargs="+", help="measure some classes alone, and no more: several processes may share one file")
    parser.add_argument("--strategies", nargs="+", choices=CANDIDATES, help="of these classes; default all, of those that test random")
    parser.add_argument("--plot", type=Path, help="where to draw the curves (PNG)")
    options = parser.parse_args()
    images, vectors = embedded(str(Path(DATA, "aid_15classes").resolve()), options.out.with_suffix(".npy"))
    record = Record(options.out, study_of(images), (f"AP@{HALF}", f"AP@{LAST}"))
    seeds = SEEDS[:2] if options.quick else SEEDS
    choose, test = halves(np.unique(images.labels).tolist())
    if options.classes:
        for classes, names, few in ((choose, list(CANDIDATES), CHOOSING_SEEDS[: len(seeds)]), (test, [RANDOM], seeds)):
            curves(record, images, vectors, [name for name in classes if name in options.classes], options.strategies or names, few)
        return
    choosing = curves(record, images, vectors, choose, list(CANDIDATES), CHOOSING_SEEDS[: len(seeds)])
    chosen = show_choice(choosing)
    print(f"chosen on {', '.join(choose)}: {chosen}")
    testing = curves(record, images, vectors, test, list(dict.fromkeys([RANDOM, chosen])), seeds)
    figures = show_test(testing, chosen, test)
    if options.plot:
        options.plot.write_bytes(drawn(choosing, testing, chosen))
    if options.json:
        command.end("label_efficiency", figures, ("rayjobs", "scikit-learn", "timm", "torch", "numpy"))


if __name__ == "__main__":
    main()
