"""Pictures of one evaluation: pure functions from arrays to PNG. They know no Ray and no storage."""

from __future__ import annotations

from rayjobs.evaluate.pictures.charts import curves, ranks_chart, rows_chart
from rayjobs.evaluate.pictures.confusion import confusion
from rayjobs.evaluate.pictures.projections import Projection, project_pca, project_umap, umap_missing
from rayjobs.evaluate.pictures.scatter import scatter, scatter_thumbnails
from rayjobs.evaluate.pictures.sheet import contact_sheet, sheet

__all__ = [
    "Projection",
    "confusion",
    "contact_sheet",
    "curves",
    "project_pca",
    "project_umap",
    "ranks_chart",
    "rows_chart",
    "scatter",
    "scatter_thumbnails",
    "sheet",
    "umap_missing",
]
