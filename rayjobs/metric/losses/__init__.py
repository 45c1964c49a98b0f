"""Losses by name. Each maps embeddings to one number that can be differentiated; most by index tuples, see `Loss.takes_tuples`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rayjobs.errors import ConfigError
from rayjobs.metric.losses.circle import CircleLoss
from rayjobs.metric.losses.contrastive import ContrastiveLoss
from rayjobs.metric.losses.cross_entropy import CrossEntropyLoss
from rayjobs.metric.losses.magnet import MagnetLoss
from rayjobs.metric.losses.multi_similarity import MultiSimilarityLoss
from rayjobs.metric.losses.ntxent import NTXentLoss
from rayjobs.metric.losses.protocol import ClassLoss, Loss, Part, TupleLoss
from rayjobs.metric.losses.proxy_anchor import ProxyAnchorLoss
from rayjobs.metric.losses.quadruplet import QuadrupletLoss
from rayjobs.metric.losses.siamese import SiameseLoss
from rayjobs.metric.losses.simsiam import SimSiamLoss
from rayjobs.metric.losses.softmax import SoftmaxLoss
from rayjobs.metric.losses.supcon import SupConLoss
from rayjobs.metric.losses.triplet import TripletLoss
from rayjobs.metric.section import CrossEntropyLossSection, LossSection

__all__ = [
    "LOSSES",
    "CircleLoss",
    "ClassLoss",
    "ContrastiveLoss",
    "CrossEntropyLoss",
    "Loss",
    "MagnetLoss",
    "MultiSimilarityLoss",
    "NTXentLoss",
    "Part",
    "ProxyAnchorLoss",
    "QuadrupletLoss",
    "SiameseLoss",
    "SimSiamLoss",
    "SoftmaxLoss",
    "SupConLoss",
    "TripletLoss",
    "TupleLoss",
    "build_loss",
]

LOSSES: dict[str, type[Loss]] = {
    "triplet": TripletLoss,
    "quadruplet": QuadrupletLoss,
    "ntxent": NTXentLoss,
    "supcon": SupConLoss,
    "contrastive": ContrastiveLoss,
    "multi_similarity": MultiSimilarityLoss,
    "circle": CircleLoss,
    "proxy_anchor": ProxyAnchorLoss,
    "siamese": SiameseLoss,
    "softmax": SoftmaxLoss,
    "cross_entropy": CrossEntropyLoss,
    "simsiam": SimSiamLoss,
    "magnet": MagnetLoss,
}


def build_loss(
    section: LossSection, *, dim: int | None = None, classes: int | None = None, names: Sequence[str] = (), seed: int = 0
) -> Loss:
    """Make the loss that a section describes.

    Args:
        section: which loss, and its parameters.
        dim: of the embeddings; for losses that learn weights.
        classes: how many there are; groups of a batch are then numbers below it. For losses with learned class weights, as what follows.
        names: of the classes, in the order of their numbers; for `weights` of `cross_entropy`.
        seed: of the first weights, which are so the same on all ranks.

    Raises:
        ConfigError: the loss has class weights, and there are no classes; or `weights` names one that there is not.
    """
    make: Callable[..., Loss] = LOSSES[section.kind]
    parameters = {name: value for name, value in vars(section).items() if name != "kind"}
    if LOSSES[section.kind] is SiameseLoss:
        return make(**parameters, dim=dim)
    if LOSSES[section.kind] is SimSiamLoss:
        return make(**parameters, dim=dim, seed=seed)
    if not issubclass(LOSSES[section.kind], ClassLoss):
        return make(**parameters)
    if dim is None or not classes:
        raise ConfigError(
            f"loss.kind {section.kind} learns weights of classes, and the training tiles have none; set train.supervision: labels, or "
            "choose another loss"
        )
    if isinstance(section, CrossEntropyLossSection) and section.weights is not None:
        parameters["weights"] = _by_number(section.weights, names)
    return make(**parameters, dim=dim, classes=classes, seed=seed)


def _by_number(weights: Mapping[str, float], names: Sequence[str]) -> list[float]:
    absent = sorted(weights.keys() - set(names))
    if absent:
        raise ConfigError(
            f"loss.weights names {', '.join(absent)}, and the training tiles are of the classes {', '.join(names)}; name these"
        )
    return [weights.get(name, 1.0) for name in names]
