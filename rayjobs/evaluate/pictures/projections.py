"""Embeddings brought to two dimensions, for people to look at."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.decomposition import PCA  # type: ignore[import-untyped]  # scikit-learn ships no types

from rayjobs.errors import RetrievalError

if TYPE_CHECKING:
    FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]

_NEIGHBOURS = 15
_MIN_DISTANCE = 0.1
_FEWEST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """Where each tile lies in a plane."""

    points: FloatArray
    """(tiles, 2) float32; the unit is that of the embedding for PCA, and means nothing for UMAP."""
    axes: tuple[str, str]
    """What the axes show."""
    shares: tuple[float, float] | None
    """Shares of the variance that the axes explain; None where the method has no such thing."""


def project_pca(vectors: FloatArray) -> Projection:
    """Project onto the two directions of greatest variance.

    Args:
        vectors: (tiles, dim) finite float, at least two tiles; of one dimension, the second axis is 0.

    Raises:
        RetrievalError: there are fewer than two tiles.
    """
    if len(vectors) < 2:  # noqa: PLR2004  one point has no variance
        raise RetrievalError(f"{len(vectors)} tiles have no directions of variance; evaluate more tiles")
    padded = np.pad(np.asarray(vectors, np.float64), ((0, 0), (0, max(0, 2 - vectors.shape[1]))))
    with np.errstate(invalid="ignore", divide="ignore"):  # tiles that are all alike explain 0 of 0
        model = PCA(2, svd_solver="full").fit(padded)
    first, second = (float(share) for share in np.nan_to_num(model.explained_variance_ratio_))
    return Projection(
        points=model.transform(padded).astype(np.float32),
        axes=(f"first component ({first:.0%} of the variance)", f"second component ({second:.0%})"),
        shares=(first, second),
    )


def umap_missing() -> str | None:
    """Return what a person can do about a missing UMAP; None where it is installed."""
    if importlib.util.find_spec("umap"):
        return None
    return "UMAP is not installed, so the embedding is shown by PCA alone; install it with `pip install 'rayjobs[umap]'`"


def project_umap(vectors: FloatArray, seed: int) -> Projection:
    """Project by UMAP (McInnes et al., 2018): neighbours stay neighbours, but distances and sizes of groups mean little.

    Deterministic for a seed, on one thread. Its compiler takes about 25 s of CPU once in a process, then 1000 tiles take 5 s; more than
    4096 tiles, whose neighbours it searches another way, take minutes: give it a sample.

    Args:
        vectors: (tiles, dim) finite float, at least four tiles.
        seed: of the layout.

    Raises:
        RetrievalError: UMAP is not installed, or there are fewer than four tiles.
    """
    if remedy := umap_missing():
        raise RetrievalError(remedy)
    if len(vectors) < _FEWEST:
        raise RetrievalError(f"UMAP needs {_FEWEST} tiles, and there are {len(vectors)}; evaluate more tiles")
    neighbours = min(_NEIGHBOURS, len(vectors) - 1)
    start = "spectral" if len(vectors) > 2 * _NEIGHBOURS else "random"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of tensorflow, which we do not need, and of groups far apart, which the picture shows
        from umap import UMAP  # noqa: PLC0415  takes seconds to import

        model = UMAP(n_neighbors=neighbours, min_dist=_MIN_DISTANCE, init=start, random_state=seed, n_jobs=1)
        points = model.fit_transform(np.asarray(vectors, np.float32))
    return Projection(points=np.asarray(points, np.float32), axes=("UMAP 1 (no unit)", "UMAP 2 (no unit)"), shares=None)
