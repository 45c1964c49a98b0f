"""The `loss`, `miner` and `mining` sections of the experiment file. Distances are Euclidean between embeddings of length 1: from 0 to 2."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from rayjobs.config import section

_Positive = Annotated[float, pydantic.Field(gt=0)]


@section
class TripletLossSection:
    """A positive must be nearer than a negative by a margin (Schroff et al., 2015)."""

    kind: Literal["triplet"] = "triplet"
    """Which loss."""
    margin: _Positive = 0.2
    """How much nearer, as a Euclidean distance."""


@section
class NTXentLossSection:
    """Softmax over one positive and all negatives of an anchor (Chen et al., 2020)."""

    kind: Literal["ntxent"]
    """Which loss."""
    temperature: _Positive = 0.1
    """Divides cosine similarities; smaller looks more at the nearest negatives."""


@section
class ContrastiveLossSection:
    """Positives within a distance, negatives beyond another (Hadsell et al., 2006)."""

    kind: Literal["contrastive"]
    """Which loss."""
    pos_margin: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """Positives farther than this are pulled."""
    neg_margin: _Positive = 1.0
    """Negatives nearer than this are pushed."""


@section
class MultiSimilarityLossSection:
    """Pairs weighted by their own and their neighbours' similarity (Wang et al., 2019)."""

    kind: Literal["multi_similarity"]
    """Which loss."""
    alpha: _Positive = 2.0
    """Sharpness over positives."""
    beta: _Positive = 50.0
    """Sharpness over negatives."""
    base: float = 0.5
    """Cosine similarity about which pairs are weighed."""


LossSection = Annotated[
    TripletLossSection | NTXentLossSection | ContrastiveLossSection | MultiSimilarityLossSection, pydantic.Field(discriminator="kind")
]


@section
class NoMiner:
    """Every tuple of the batch."""

    kind: Literal["none"]
    """Which miner."""


@section
class SemiHardMiner:
    """Triplets whose negative is farther than the positive, but by no more than a margin (Schroff et al., 2015)."""

    kind: Literal["semi_hard"] = "semi_hard"
    """Which miner."""
    margin: _Positive = 0.2
    """As a Euclidean distance; that of the loss, as a rule."""


@section
class HardMiner:
    """Each anchor's farthest positive and nearest negative (Hermans et al., 2017)."""

    kind: Literal["hard"]
    """Which miner."""


@section
class MultiSimilarityMiner:
    """Negatives nearer than the farthest positive, and positives farther than the nearest negative, within a band (Wang et al., 2019)."""

    kind: Literal["multi_similarity"]
    """Which miner."""
    epsilon: _Positive = 0.1
    """Width of the band, as a cosine similarity."""


MinerSection = Annotated[NoMiner | SemiHardMiner | HardMiner | MultiSimilarityMiner, pydantic.Field(discriminator="kind")]


@section
class MiningSection:
    """Periodic mining of hard negatives over the whole training set, with the weights of the moment."""

    every: Annotated[int, pydantic.Field(ge=0)] = 2
    """Epochs between refreshes; 0 never mines."""
    first: Annotated[int, pydantic.Field(ge=0)] = 1
    """Epochs before the first refresh: random weights know no hard negatives."""
    negatives: Annotated[int, pydantic.Field(ge=1)] = 5
    """Mined negatives per anchor."""
    share: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5
    """Share of anchors that are joined in their batch by a mined negative."""
    max_candidates: Annotated[int, pydantic.Field(ge=1)] = 1024
    """How far down an anchor's ranking to look for admissible negatives."""
    overlap: bool = True
    """Refuse candidates whose ground overlaps the anchor's."""
    distance: bool = True
    """Refuse candidates nearer than `tiles.min_neg_dist`."""
    label: bool = True
    """Refuse candidates of the anchor's class, where both are known."""

    def __post_init__(self) -> None:
        """Check that there is room for the negatives."""
        if self.max_candidates < self.negatives:
            raise ValueError(f"max_candidates {self.max_candidates} is below negatives {self.negatives}; raise it")
