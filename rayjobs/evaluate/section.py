"""The `evaluate` section of the experiment file."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from rayjobs.config import section


@section
class EvaluateSection:
    """What counts as relevant, and how it is measured."""

    split: Literal["val", "test"] = "test"
    """Part of the set that is both queries and gallery. Choices are made on `val`; `test` is opened once, after them."""
    relevance: Literal["neighbourhood", "label"] = "neighbourhood"
    """`neighbourhood`: tiles whose centres lie within `radius`; `label`: tiles of the query's class."""
    radius: Annotated[float, pydantic.Field(gt=0)] = 1.5
    """Greatest distance between centres of relevant tiles, in tile sizes; 1.5 is the 8 tiles around one of a grid."""
    ks: tuple[Annotated[int, pydantic.Field(ge=1)], ...] = (1, 5, 10)
    """Cut-offs of recall@k and precision@k."""
    objective: str = "recall@10"
    """The metric that counts."""
    resamples: Annotated[int, pydantic.Field(ge=100)] = 2000
    """Bootstrap resamples of spatial blocks behind each interval."""
    seed: int = 0
    """Of the resampling and of the random-init row."""
    weights: str | None = None
    """Weights of the frozen-pretrained row, as `model.pretrained`; default those of the model, if it has any."""
