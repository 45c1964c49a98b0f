"""The `label` section of the experiment file."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from rayjobs.config import section
from rayjobs.workspace import ArtefactName

_Share = Annotated[float, pydantic.Field(ge=0, le=1)]
_Count = Annotated[int, pydantic.Field(ge=1)]


@section
class LabelSection:
    """Active learning: which tiles people are asked about, round by round, and what is learned from their labels."""

    taxonomy: ArtefactName | None = None
    """Name of the taxonomy; default the experiment's name. One that is not there yet is made, of `classes`."""
    classes: Annotated[tuple[str, ...], pydantic.Field(min_length=2)] = ("positive", "negative")
    """Classes of a taxonomy that is not there yet."""
    sought: str | None = None
    """The class that is sought: of `positive`, `gaussian` and `uncertain_balanced`, of the first tiles and of the advice; default the
    first."""
    examples: tuple[str, ...] = ()
    """What is sought looks like these: ids of tiles, or paths of pictures (PNG, JPEG, GeoTIFF) with the encoder's bands. The first tiles to
    be labelled are their neighbours, and those of what has the label already. Where none are given and there is no head yet, those of the
    round before are taken."""
    seed_tiles: _Count = 20
    """Tiles of a queue while there is no head: labels are of one class alone."""
    seed_neighbours: _Share = 0.8
    """Share of these that are neighbours; the others are drawn."""
    round_tiles: _Count = 20
    """Tiles of each later queue."""
    strategy: Literal["random", "least_confidence", "margin", "entropy", "uncertain_balanced", "positive", "gaussian"] = (
        "uncertain_balanced"
    )
    """Which tiles are wanted, by the head's probabilities: any; the least likely best class, the closest two classes, or the most even
    spread (the same of two classes); by turns on either side of .5; the likeliest of the class sought; a sample of weights N(p; .5, .2)."""
    diversity: Literal["top_n", "proximity", "cluster", "core_set"] = "top_n"
    """Which of these are taken together: the most wanted; ten at a time, away from what is taken; of three clusters in proportion; the
    farthest from all that is labelled or taken, of ten times as many."""
    rebalance: bool = False
    """Whether tiles are chosen among as many of each predicted class, of the rarest all."""
    neighbours: Annotated[int, pydantic.Field(ge=0)] = 0
    """Nearest tiles that follow each chosen one in the queue, and count among `round_tiles`."""
    head: Literal["linear", "mlp"] = "linear"
    """What is trained on the embeddings: logistic regression, or a perceptron with one hidden layer."""
    splits: tuple[Literal["train", "val", "test"], ...] | None = None
    """Parts of the set that may be labelled; null: all that are embedded (`index.splits`), but for `measured`."""
    measured: Literal["val", "test"] | None = None
    """Part of the set that is not queued, and on whose tiles the head is measured: by what the oracle knows, or people have labelled."""
    oracle: str | None = None
    """Answers in place of people, for studies: `tiles` knows the labels of the set's tiles, a path those of a CSV (`tile_id,label`)."""
    oracle_class: str | None = None
    """The oracle's label that is the class sought, all others being the other of two classes; null: its labels are the taxonomy's."""
    budget: _Count = 200
    """Answers of the oracle, what has been said before and what it is unsure of included."""
    seed: int = 0
    """Of all draws, and of the head."""
