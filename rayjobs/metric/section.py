"""The `loss`, `miner`, `memory`, `clustering`, `mining`, `hashing`, `interclass` and `projector` sections of the experiment file.

Losses and miners compare embeddings of length 1; smaller distances are nearer. Loads no torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from rayjobs.config import section
from rayjobs.errors import ConfigError

_Positive = Annotated[float, pydantic.Field(gt=0)]
NotNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]

Distance = Literal["euclidean", "squared", "cosine"]
"""Between embeddings of length 1: ||u - v|| (0 to 2), its square (0 to 4), or 1 - cos(u, v) (0 to 2)."""


@section
class TripletLossSection:
    """A positive must be nearer than a negative (Schroff et al., FaceNet, 2015; as a ratio: Hoffer & Ailon, Triplet network, 2015)."""

    kind: Literal["triplet"] = "triplet"
    """Which loss."""
    form: Literal["margin", "ratio"] = "margin"
    """`margin`: nearer by a margin; `ratio`: the softmax of the two distances is pushed to (0, 1)."""
    margin: _Positive = 0.2
    """How much nearer, in the unit of `distance`; the form `ratio` has none."""
    distance: Distance = "euclidean"
    """Between embeddings of length 1: `euclidean` (0 to 2), `squared` (0 to 4) or `cosine` (1 - cosine, 0 to 2)."""


@section
class QuadrupletLossSection:
    """A positive must be nearer than a negative, and than two others that are unlike (Chen et al., Beyond triplet loss, 2017)."""

    kind: Literal["quadruplet"]
    """Which loss."""
    form: Literal["margin", "ratio"] = "margin"
    """`margin`: nearer by the margins; `ratio`: on the softmax of the three distances."""
    margin: _Positive = 0.2
    """How much nearer than the negative, in the unit of `distance`; the form `ratio` has none."""
    second_margin: _Positive | None = None
    """How much nearer than the two others are to each other; for `ratio`, the target of their weight; default half of `margin`."""
    distance: Distance = "euclidean"
    """Between embeddings of length 1: `euclidean` (0 to 2), `squared` (0 to 4) or `cosine` (1 - cosine, 0 to 2)."""


@section
class NTXentLossSection:
    """Softmax over one positive and all negatives of an anchor (Chen et al., SimCLR, 2020)."""

    kind: Literal["ntxent"]
    """Which loss."""
    temperature: _Positive = 0.1
    """Divides cosine similarities; smaller looks more at the nearest negatives."""


@section
class SupConLossSection:
    """Softmax over all positives and negatives of an anchor, averaged over its positives (Khosla et al., Supervised contrastive, 2020)."""

    kind: Literal["supcon"]
    """Which loss."""
    temperature: _Positive = 0.1
    """Divides cosine similarities; smaller looks more at the nearest items."""


@section
class ContrastiveLossSection:
    """Positives within a distance, negatives beyond another (Hadsell et al., Invariant mapping, 2006)."""

    kind: Literal["contrastive"]
    """Which loss."""
    pos_margin: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """Positives farther than this are pulled, in the unit of `distance`."""
    neg_margin: _Positive = 1.0
    """Negatives nearer than this are pushed, likewise."""
    distance: Distance = "euclidean"
    """Between embeddings of length 1: `euclidean` (0 to 2), `squared` (0 to 4) or `cosine` (1 - cosine, 0 to 2)."""


@section
class MultiSimilarityLossSection:
    """Pairs weighted by their own and their neighbours' similarity (Wang et al., Multi-similarity loss, 2019)."""

    kind: Literal["multi_similarity"]
    """Which loss."""
    alpha: _Positive = 2.0
    """Sharpness over positives."""
    beta: _Positive = 50.0
    """Sharpness over negatives."""
    base: float = 0.5
    """Cosine similarity about which pairs are weighed."""


@section
class CircleLossSection:
    """Similarities weighted by how far each is from its optimum (Sun et al., Circle loss, 2020)."""

    kind: Literal["circle"]
    """Which loss."""
    margin: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.4
    """Relaxation m: positives are wanted above cosine 1 - m, negatives below m."""
    gamma: _Positive = 80.0
    """Scale of the similarities."""


@section
class SiameseLossSection:
    """Whether two tiles are alike, from the weighted absolute difference of their embeddings (Khokhlova et al., ICIP 2020)."""

    kind: Literal["siamese"]
    """Which loss."""
    alpha: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.5
    """Weight of alike pairs; unlike ones have 1 - alpha."""
    gamma: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """0: binary cross-entropy; above it a focal loss: pairs that are told well already count less. 2 is usual."""


@section
class ProxyAnchorLossSection:
    """A learned proxy per class attracts its class and repels the others (Kim et al., Proxy anchor loss, 2020)."""

    kind: Literal["proxy_anchor"]
    """Which loss."""
    margin: _Positive = 0.1
    """Wanted beyond cosine 0, as a cosine similarity."""
    alpha: _Positive = 32.0
    """Sharpness."""


@section
class SoftmaxLossSection:
    """Classification by the cosine to a learned weight per class (Zhai & Wu, Classification is a strong baseline, 2019)."""

    kind: Literal["softmax"]
    """Which loss."""
    temperature: _Positive = 0.05
    """Divides cosine similarities."""


@section
class CrossEntropyLossSection:
    """Plain classification: a learned linear layer on the embeddings, to train a backbone as a classifier or a head on frozen features.

    Embeddings have length 1 (but those of `projection: hash`), so that its weights must grow before it is sure: see `scale`.
    """

    kind: Literal["cross_entropy"]
    """Which loss."""
    scale: _Positive = 1.0
    """Multiplies the embeddings first: 16 is about the length of a backbone's features."""
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Probability with which a number of an embedding is left out."""
    weights: dict[str, NotNegative] | None = None
    """By class, how much its tiles count, as for one that is rare; those that are not named count 1. The mean is over the weights."""


@section
class SimSiamLossSection:
    """What is predicted of one version of a tile is its other version; negatives are not asked (Chen & He, SimSiam, 2021).

    Half the negative cosine from the prediction of each to the other, which is held fixed. From -1 (all agree) to 1. `train/spread` near 0
    says that all embeddings have become one. For `train.supervision: views`, and wherever tiles are alike.
    """

    kind: Literal["simsiam"]
    """Which loss."""
    hidden: Annotated[int, pydantic.Field(ge=1, le=65_536)] | None = None
    """Width of the predictor's hidden layer; default a quarter of what it predicts, but 16 at least."""


@section
class MagnetLossSection:
    """Clusters of a class against the nearest clusters of others (Rippel et al., Adaptive density discrimination, 2015)."""

    kind: Literal["magnet"]
    """Which loss."""
    form: Literal["published", "spatial"] = "published"
    """`published`: clusters of each class, see `clustering`; `spatial`: near tiles are a class, and each batch is clustered."""
    alpha: _Positive = 0.5
    """Margin: by how many variances an item is wanted nearer to its own cluster."""
    batch_clusters: Annotated[int, pydantic.Field(ge=1)] = 12
    """Clusters of a batch's embeddings; for the form `spatial` alone."""


LossSection = Annotated[
    TripletLossSection
    | QuadrupletLossSection
    | NTXentLossSection
    | SupConLossSection
    | ContrastiveLossSection
    | MultiSimilarityLossSection
    | CircleLossSection
    | SiameseLossSection
    | ProxyAnchorLossSection
    | SoftmaxLossSection
    | CrossEntropyLossSection
    | SimSiamLossSection
    | MagnetLossSection,
    pydantic.Field(discriminator="kind"),
]

_COMPARES_WITH = {
    "proxy_anchor": "learned proxies of the classes",
    "softmax": "learned weights of the classes",
    "cross_entropy": "a learned classifier",
    "simsiam": "predictions of what is alike",
    "magnet": "clusters",
}
"""Of the losses that take no tuples: what they compare embeddings with."""


def why_no_tuples(loss: LossSection) -> str | None:
    """Return why a loss has no use for pairs and triplets, and so for a miner or a memory; None where it lives on them."""
    against = _COMPARES_WITH.get(loss.kind)
    return against and f"loss.kind {loss.kind} compares embeddings with {against}, and takes no pairs, no triplets and no reference set"


def require_tuples(loss: LossSection, wanted_by: str) -> None:
    """Check that a loss has a use for pairs and triplets.

    Args:
        loss: the section.
        wanted_by: the key that would choose or add them, such as `memory.size`.

    Raises:
        ConfigError: it takes none.
    """
    reason = why_no_tuples(loss)
    if reason:
        raise ConfigError(f"{reason}, so {wanted_by} has nothing to give it; leave {wanted_by} at its default or choose another loss")


@section
class NoMiner:
    """Every tuple of the batch."""

    kind: Literal["none"]
    """Which miner."""


@section
class HardNegativeMiner:
    """Each anchor's nearest negative, with each of its positives (Hermans et al., In defense of the triplet loss, 2017)."""

    kind: Literal["hard_negative"]
    """Which miner."""


@section
class HardPositiveMiner:
    """Each anchor's farthest positive, with each of its negatives (Hermans et al., In defense of the triplet loss, 2017)."""

    kind: Literal["hard_positive"]
    """Which miner."""


@section
class HardMiner:
    """Each anchor's farthest positive and nearest negative (Hermans et al., In defense of the triplet loss, 2017)."""

    kind: Literal["hard"]
    """Which miner."""


@section
class SemiHardMiner:
    """Triplets whose negative is farther than the positive, but by no more than a margin (Schroff et al., FaceNet, 2015)."""

    kind: Literal["semi_hard"] = "semi_hard"
    """Which miner."""
    margin: _Positive = 0.2
    """In the unit of `distance`; that of the loss, as a rule."""
    distance: Distance = "euclidean"
    """Between embeddings of length 1: `euclidean` (0 to 2), `squared` (0 to 4) or `cosine` (1 - cosine, 0 to 2)."""
    negatives: Literal["all", "nearest"] = "all"
    """Of each positive pair: `all` that are semi-hard, or the `nearest` of them, which is what a large memory leaves room for."""


@section
class MultiSimilarityMiner:
    """Negatives nearer than the farthest positive, and positives farther than the nearest negative, within a band (Wang et al., 2019)."""

    kind: Literal["multi_similarity"]
    """Which miner."""
    epsilon: _Positive = 0.1
    """Width of the band, as a cosine similarity."""


@section
class DistanceWeightedMiner:
    """One negative per positive pair, drawn so that all distances come equally often (Wu et al., Sampling matters, 2017)."""

    kind: Literal["distance_weighted"]
    """Which miner."""
    cutoff: Annotated[float, pydantic.Field(gt=0, lt=2)] = 0.5
    """Euclidean distance below which a negative gets no more weight for being nearer: such are rare, and noisy."""
    farthest: Annotated[float, pydantic.Field(gt=0, le=2)] = 1.4
    """Negatives at this Euclidean distance or beyond are not drawn: they no longer teach."""

    def __post_init__(self) -> None:
        """Check that some distances are left."""
        if self.farthest <= self.cutoff:
            raise ValueError(f"farthest {self.farthest} must lie above cutoff {self.cutoff}; raise it")


MinerSection = Annotated[
    NoMiner | HardNegativeMiner | HardPositiveMiner | HardMiner | SemiHardMiner | MultiSimilarityMiner | DistanceWeightedMiner,
    pydantic.Field(discriminator="kind"),
]


@section
class MemorySection:
    """Embeddings of past batches as further positives and negatives (Wang et al., Cross-batch memory, 2020)."""

    size: Annotated[int, pydantic.Field(ge=0)] = 0
    """Embeddings kept; 0 for no memory."""
    warm_up: Annotated[int, pydantic.Field(ge=0)] = 1000
    """Steps before they are used: embeddings of an encoder that still changes fast are out of date at once."""
    weight: _Positive = 1.0
    """Of the loss against the memory, beside that within the batch."""


@section
class HashingSection:
    """Beside the loss, what makes the numbers h of `model.projection: hash` good to round to bits (Roy et al., MHCLN, 2019).

    Unused by other projections. The loss itself is on h.
    """

    push: NotNegative = 0.001
    """Weight of the mean of (h - 0.5)^2 over tiles and bits, which is pushed up: lambda 1 of the earlier system."""
    balance: NotNegative = 1.0
    """Weight of the mean over tiles of (mean of h over bits - 0.5)^2, which is pressed down: half the bits on. Lambda 2."""
    scaling: Literal["published", "mirs"] = "published"
    """`published`: the push as above; `mirs`: divided by the number of bits once more, as the earlier system has it."""


@section
class InterclassSection:
    """Triplets across classes: tiles that look alike, though their classes differ, are drawn together.

    What looks alike are clusters of the backbone's features before training. Of the semi-hard triplets of a batch by these clusters, those
    count whose anchor is of another class than its positive and its negative. Needs `train.supervision: labels`.
    """

    weight: NotNegative = 0.0
    """Of their loss, beside that of the labels; 0: none."""
    clusters: Annotated[int, pydantic.Field(ge=2)] = 30
    """Clusters of the training tiles (k-means)."""
    standardise: bool = True
    """Bring features to mean 0 and deviation 1 before they are clustered. The earlier system says that it does, and did not."""
    seed: int = 0
    """Of the k-means."""
    margin: _Positive = 0.2
    """Of the miner and the loss, in the unit of `distance`."""
    distance: Distance = "euclidean"
    """Between embeddings of length 1: `euclidean` (0 to 2), `squared` (0 to 4) or `cosine` (1 - cosine, 0 to 2)."""


@section
class ProjectorSection:
    """Layers between the encoder and the loss that are thrown away after training (Chen et al., SimCLR, 2020)."""

    dim: Annotated[int, pydantic.Field(ge=1, le=65_536)] | None = None
    """Numbers that the loss compares: linear layers without biases, ReLUs between them, on the encoder's embedding, or with
    `model.projection: hash` on the numbers before their sigmoid. null: no projector, and the loss compares embeddings."""
    layers: Annotated[int, pydantic.Field(ge=1, le=4)] = 2
    """Linear layers: 2 in SimCLR, 3 in SimSiam."""
    hidden: Annotated[int, pydantic.Field(ge=1, le=65_536)] | None = None
    """Numbers between the layers; default as many as the encoder gives."""
    batch_norm: Literal["none", "hidden", "all"] = "none"
    """Batch norms, over the whole batch whatever the number of workers: after the `hidden` layers as in SimCLR, or after `all`, the last
    one without scale and shift, as in SimSiam."""


@section
class ClusteringSection:
    """Clusters of the whole training set for `loss.kind: magnet`, found again from time to time (Rippel et al., 2015)."""

    per_class: Annotated[int, pydantic.Field(ge=1)] = 4
    """Clusters of each class; fewer where it has fewer tiles."""
    per_batch: Annotated[int, pydantic.Field(ge=2)] = 12
    """Clusters in a batch: a seed and its nearest impostors, with batch_size / per_batch tiles each."""
    every: Annotated[int, pydantic.Field(ge=1)] = 1
    """Epochs between refreshes."""


@section
class MiningSection:
    """Periodic mining over the whole training set, with the weights of the moment.

    For each tile, the anchor, it finds the most similar tiles that are not alike (hard negatives), and if wanted the least similar ones
    that are (hard positives). The guards say which candidates are no negatives. Each has a switch of its own, and its refusals are
    counted under its name in the log and in the tracker (`mine/refused/<name>`). They are asked in the order in which they stand here,
    and a candidate counts for the first that refuses it.
    """

    mode: Literal["periodic", "asynchronous"] = "periodic"
    """`periodic`: training waits while all workers mine with the weights of the moment, and a run can be repeated exactly.
    `asynchronous`: a task beside training mines with the newest checkpoint, and the first epoch after that uses what it found; the metric
    `mine/lag_epochs` says how old its weights are. With `train.ema`, `asynchronous` mines with the averaged weights, `periodic` with the
    raw ones."""
    num_cpus: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """CPUs that asynchronous mining asks of the cluster; 0: none of its own, one thread beside the workers."""
    num_gpus: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """GPUs that asynchronous mining asks of the cluster; may be a part of one."""
    every: Annotated[int, pydantic.Field(ge=0)] = 2
    """Epochs between refreshes; 0 never mines."""
    first: Annotated[int, pydantic.Field(ge=0)] = 1
    """Epochs before the first refresh: random weights know no hard negatives."""
    negatives: Annotated[int, pydantic.Field(ge=1)] = 5
    """Mined negatives per anchor."""
    positives: Annotated[int, pydantic.Field(ge=0)] = 0
    """Mined positives per anchor: of those that `train.supervision` knows, at most `max_candidates` of them, the least similar. 0 for none:
    then an anchor's partners are drawn from all of them."""
    share: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5
    """Share of anchors that are joined in their batch by mined negatives; and, with `positives`, share of the groups of a batch whose
    anchor is joined by one of its mined positives. The metric `mine/joined_share` says how many of the places for mined negatives were
    taken: less than 1 where too few were found."""
    joined: Annotated[int, pydantic.Field(ge=1)] = 1
    """How many of its mined negatives join each anchor that is joined, at most `negatives`. Batches keep their size: of P groups,
    int(P x share / (1 + share x joined)) have anchors that are joined (none in a batch too small for it), and `joined` times as many have
    the mined ones."""
    max_candidates: Annotated[int, pydantic.Field(ge=1)] = 1024
    """How far down an anchor's ranking to look for admissible negatives."""
    exact_up_to: Annotated[int, pydantic.Field(ge=0)] = 3_000_000
    """Training tiles up to which each is compared with all others. Of more tiles, each is compared with those in the parts of the set
    nearest to it, by a FAISS IVF index: some of its hardest negatives are overlooked. The log says which search was taken."""
    skip_in_top: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Anchors of which every known positive is among so many most similar tiles get no negatives: what is found already teaches little
    (Khokhlova et al., 2020, with 2; there the one positive is that of the other year). They are compared with the tiles that the guards
    admit. Null: all anchors get theirs."""
    place: bool = True
    """Refuse candidates that show the anchor's place (`place_id`), on another date or in another scene."""
    date: bool = True
    """With `train.supervision: places`, refuse candidates of the anchor's own date, since its place is looked for on the others."""
    overlap: bool = True
    """Refuse candidates whose ground overlaps the anchor's."""
    distance: bool = True
    """Refuse candidates nearer than `tiles.min_neg_dist`, or farther than `tiles.max_neg_dist` if there is one."""
    label: bool = True
    """Refuse candidates of the anchor's class, where both are known (`train.supervision: labels`), or those that share too much of their
    classes (`proportions`, and counted so). No supervision by geography asks labels."""
    max_similarity: Annotated[float, pydantic.Field(gt=-1, le=1)] | None = None
    """Refuse candidates whose cosine similarity to the anchor is greater: such likeness is probably no chance. For sets with much
    repeated ground (fields, sea, roofs); 0.9 to 0.98 is a beginning. Null refuses none."""
    beyond_positives: bool = False
    """Refuse candidates more similar to the anchor than its own most similar known positive: probably positives that nobody has told of
    (positive-aware mining, Moreira et al., NV-Retriever, 2024). Anchors without a known positive are not guarded. Of many known
    positives, `max_candidates` are compared."""
    max_per_scene: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Refuse candidates of a scene that has given the anchor so many negatives already: one scene's haze or season is easily the hardest
    of negatives, and teaches little. Null for any number."""

    def __post_init__(self) -> None:
        """Check that there is room for the negatives, and that there are as many as are to join."""
        if self.max_candidates < self.negatives:
            raise ValueError(f"max_candidates {self.max_candidates} is below negatives {self.negatives}; raise it")
        if self.joined > self.negatives:
            raise ValueError(f"joined {self.joined} is above negatives {self.negatives}; lower it, or raise negatives")
        if self.skip_in_top is not None and self.skip_in_top > self.negatives:
            raise ValueError(f"skip_in_top {self.skip_in_top} is above negatives {self.negatives}; lower it, or raise negatives")
        if self.skip_in_top is not None and self.beyond_positives:
            raise ValueError(
                "skip_in_top counts candidates beyond the known positives, which beyond_positives refuses; choose one of the two"
            )
