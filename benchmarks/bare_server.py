"""The service that one would write by hand: FastAPI under uvicorn, one process, the index in its memory, nothing else.

It answers what ours answers: for each hit id, score, scene, datetime, label, window and footprint, as GeoJSON. It knows no filters,
negatives, tokens, limits, uploads, swaps of the index, metrics or logs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import faiss
import fastapi
import numpy as np
import pyarrow.parquet as pq
import shapely
import uvicorn
from fastapi.responses import JSONResponse
from pydantic import BaseModel

LIMIT = 10


class Query(BaseModel):
    """One embedding."""

    embedding: list[float]
    limit: int = LIMIT


class Queries(BaseModel):
    """Several embeddings."""

    searches: list[Query]


class Bare:
    """An index of FAISS and its metadata."""

    def __init__(self, folder: Path, *, kind: str, nprobe: int, k_factor: int) -> None:
        """Map the index, read the metadata."""
        flat = faiss.read_index(str(folder / "segment-00000.vectors"), faiss.IO_FLAG_MMAP_IFC)
        self.index, self.parameters = flat, None
        if kind != "flat":
            self.base = faiss.read_index(str(folder / "segment-00000.faiss"), faiss.IO_FLAG_MMAP_IFC)
            self.index = faiss.IndexRefine(self.base, flat)
            self.parameters = faiss.IndexRefineSearchParameters(
                k_factor=k_factor, base_index_params=faiss.SearchParametersIVF(nprobe=nprobe)
            )
        [self.table] = pq.read_table(folder / "segment-00000.parquet").combine_chunks().to_batches()  # of pieces, taking rows is slow

    def search(self, vectors: np.ndarray, limit: int) -> list[dict[str, Any]]:
        """Return a FeatureCollection for each query (q, dim)."""
        scores, rows = self.index.search(vectors, limit, params=self.parameters)
        found = self.table.take(rows.ravel()).to_pylist()
        features = [feature(row, float(score)) for row, score in zip(found, scores.ravel(), strict=True)]
        return [
            {"type": "FeatureCollection", "features": features[start : start + limit]} for start in range(0, limit * len(vectors), limit)
        ]


def feature(row: dict[str, Any], score: float) -> dict[str, Any]:
    """Return a hit as GeoJSON."""
    window = {name: row[name] for name in ("row", "col", "height", "width")}
    properties = {
        "tile_id": row["tile_id"], "scene_id": row["scene_id"], "datetime": row["datetime"] and row["datetime"].isoformat(),
        "label": row["label"], "window": window, "score": score,
    }  # fmt: skip
    geometry = shapely.geometry.mapping(shapely.from_wkb(row["geometry"]))
    return {"type": "Feature", "id": row["tile_id"], "geometry": geometry, "properties": properties}


def vectors_of(queries: list[Query]) -> np.ndarray:
    """Return the (q, dim) float32 vectors, of length 1."""
    vectors = np.array([query.embedding for query in queries], np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def application(bare: Bare) -> fastapi.FastAPI:
    """Return the service."""
    api = fastapi.FastAPI()

    @api.post("/search")
    async def search(query: Query) -> JSONResponse:
        return JSONResponse(bare.search(vectors_of([query]), query.limit)[0])

    @api.post("/batch")
    async def batch(queries: Queries) -> JSONResponse:
        return JSONResponse({"answers": bare.search(vectors_of(queries.searches), LIMIT)})

    return api


def main() -> None:
    """Serve a folder: FOLDER PORT KIND NPROBE K_FACTOR."""
    folder, port, kind, nprobe, k_factor = sys.argv[1:]
    faiss.omp_set_num_threads(1)
    bare = Bare(Path(folder), kind=kind, nprobe=int(nprobe), k_factor=int(k_factor))
    uvicorn.run(application(bare), host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
