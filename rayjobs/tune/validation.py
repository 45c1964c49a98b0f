"""The measure of trials: the objective of `rayjobs evaluate`, on the validation split, without intervals and probes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rayjobs.evaluate.measure import Plan, means
from rayjobs.evaluate.relevance import Question
from rayjobs.evaluate.section import EvaluateSection

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """From embeddings of the validation tiles to figures by name."""

    question: Question
    plan: Plan
    settings: EvaluateSection
    distance: Literal["cosine", "euclidean"]

    def __call__(self, vectors: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, float]:
        """Measure (tiles, dim) float32, in the order of the question's tiles."""
        return means(vectors, self.distance, self.question, self.plan, self.settings)
