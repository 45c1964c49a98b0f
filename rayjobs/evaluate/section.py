"""The `evaluate` section of the experiment file."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from rayjobs.config import section


@section
class SegmentationSection:
    """A linear probe of single pixels on every row's last feature map; needs a label map."""

    tiles: Annotated[int, pydantic.Field(ge=1)] = 200
    """Most tiles of the training split that it is fitted on, and most of the measured split that it is tested on."""
    cells: Annotated[int, pydantic.Field(ge=10)] = 20_000
    """Most cells of the feature maps that it is fitted on."""


@section
class EvaluateSection:
    """What counts as relevant, and how it is measured."""

    split: Literal["val", "test"] = "test"
    """Part of the set that is both queries and gallery. Choices are made on `val`; `test` is opened once, after them."""
    relevance: Literal["neighbourhood", "label", "place"] = "neighbourhood"
    """`neighbourhood`: tiles whose centres lie within `radius`; `label`: tiles of the query's class; `place`: the tiles of the same place
    (`tiles.place_tolerance`) on another date. There each tile of the split asks each other date, whose gallery is all its tiles, of
    whatever split."""
    radius: Annotated[float, pydantic.Field(gt=0)] = 1.5
    """Greatest distance between centres of relevant tiles, in tile sizes; 1.5 is the 8 tiles around one of a grid."""
    exclude: Literal["overlap", "scene", "observation"] = "overlap"
    """What a query may not count: itself and tiles that share ground with it (`overlap`); and, beyond these, all tiles of its own `scene`,
    or all pictures of its own `observation`, which look alike for their light and season, whatever they show."""
    ks: Annotated[tuple[Annotated[int, pydantic.Field(ge=1)], ...], pydantic.Field(min_length=1)] = (1, 5, 10)
    """Cut-offs of recall@k, precision@k and the others."""
    ranks: Annotated[int, pydantic.Field(ge=0)] = 100
    """How far the precision is followed from rank to rank (`ranks` of the report, and its picture); 0: not at all."""
    objective: str = "recall@10"
    """The metric that counts: one of retrieval (recall@k, MAP@R, ...) or, of tiles with class proportions, nDCG@k/graded,
    soft_precision@k or gSil."""
    unit: Literal["auto", "block", "scene", "observation", "class"] = "auto"
    """What is resampled for intervals. `auto`: what `tiles.splits.by` divides by, of plain images the scene, or the place where that is
    known; `observation`: what plain images were cut from; `class`: where the classes are themselves a sample, as in the evaluation on
    classes that were never trained on."""
    resamples: Annotated[int, pydantic.Field(ge=100)] = 2000
    """Bootstrap resamples of those units behind each interval."""
    without_classes: tuple[str, ...] = ()
    """Classes, such as a rest that dominates, that a second scoring leaves out: their tiles neither ask nor are found."""
    contact_sheets: Annotated[int, pydantic.Field(ge=0)] = 0
    """Queries, of all classes in turn, whose 64 first results are drawn for the trained row and listed for every row in `results.json`; the
    means over all queries stand there, too, with 64 among `ks`."""
    probes: tuple[Literal["knn", "svc", "rfc", "mlp", "dt"], ...] = ("knn",)
    """Simple predictors of classes, and of class proportions, fitted on the embeddings: k nearest neighbours, support vectors, random
    forest, perceptron, decision tree. The first gives the table by class and the confusion matrix. [] for none."""
    probe_repeats: Annotated[int, pydantic.Field(ge=1)] = 5
    """Splits that each probe is fitted and tested on, by blocks or scenes; and as many random ones beside them."""
    probe_test_share: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.3
    """Share of the blocks or scenes that a probe is tested on."""
    segmentation: SegmentationSection | None = None
    """The probe of single pixels, {} with its defaults; null: none."""
    umap: bool = True
    """Whether the report shows the trained embedding by UMAP, too, where that is installed; it takes half a minute."""
    seed: int = 0
    """Of the resampling, the probes, the pictures and the random-init row."""
    weights: str | None = None
    """Weights of the frozen-pretrained row, as `model.pretrained`; default those of the model, if it has any."""

    def __post_init__(self) -> None:
        """Refuse a probe that is listed twice, and keys that do not go together."""
        if len(set(self.probes)) < len(self.probes):
            raise ValueError(f"probes lists one twice: {', '.join(self.probes)}")
        if self.relevance == "place" and self.exclude != "overlap":
            raise ValueError(f"with relevance: place another date is asked, which leaves out more than exclude: {self.exclude}; drop it")
