"""What runs on a worker: make one Cloud Optimised GeoTIFF of a scene's pieces, and compare it with every tile that the service sent."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import affine
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import rasterio.shutil
import rasterio.windows

from rayjobs.errors import DamagedError
from rayjobs.fetch.pieces import EMPTY, FAILED, REQUESTS, FetchPlan, piece_key, read_piece
from rayjobs.fetch.plan import FetchScene, when
from rayjobs.rasters.received import pixels_of
from rayjobs.storage import FileDigest

_BLOCK = 512
_MULTIPLE = 16
"""Sides of a TIFF's tiles are multiples of this."""
_SUMMARY = b"rayjobs"
_WITH_OPACITY = 4

Summary = tuple[dict[str, Any], pa.Table]
"""What `assemble` told of a scene, and its requests (`REQUESTS`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CogSettings:
    """How scenes are written."""

    nodata: int | None
    """As `fetch.nodata`."""
    compress: str


def assemble(entry: Mapping[str, Any], *, plan: FetchPlan, scenes: Mapping[str, FetchScene], settings: CogSettings) -> dict[str, Any]:
    """Write a scene of which all pieces are there, and write down that it is done; its pieces are not needed any more.

    Returns:
        What `summary` gives.

    Raises:
        DamagedError: the file is not what the service sent, or a piece does not hold all of its tiles.
    """
    scene = scenes[entry["scene_id"]]
    with tempfile.TemporaryDirectory(prefix="rayjobs-fetch-") as folder:
        plain, cog = Path(folder) / "plain.tif", Path(folder) / "cog.tif"
        requests, sums, valid = _write(scene, plan, settings, plain)
        _optimise(plain, cog, settings)
        plain.unlink()
        _compare(scene, cog, sums)
        with cog.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        digest = FileDigest(f"{scene.scene_id}.tif", sha256, cog.stat().st_size, shared=True)
        plan.store.upload(cog_key(plan.prefix, digest), cog)  # beside the versions, whichever will name it
    pixels = scene.image.height * scene.image.width
    told = {
        "scene_id": scene.scene_id,
        "file": {"name": digest.name, "sha256": digest.sha256, "size": digest.size, "shared": True},
        "requests": requests.num_rows,
        "empty": sum(outcome == EMPTY for outcome in requests["outcome"].to_pylist()),
        "bytes_received": sum(requests["bytes"].to_pylist()),
        "pixels": pixels,
        "missing_fraction": 1 - valid / pixels,
    }
    sink = io.BytesIO()
    pq.write_table(requests.replace_schema_metadata({_SUMMARY: json.dumps(told).encode()}), sink)
    plan.store.write(plan.prefix + scene.done, sink.getvalue())
    for piece in range(scene.pieces):
        plan.store.delete(piece_key(plan.prefix, scene, piece))
    return told


def cog_key(prefix: str, file: FileDigest) -> str:
    """Return where a scene's file lies; it is shared by the versions of the artefact at `prefix`, whichever they are."""
    return file.key(f"{prefix}any-version/")


def summary(plan: FetchPlan, scene: FetchScene) -> Summary | None:
    """Return what `assemble` wrote down of a scene, and its requests; None where it did not, or the file is gone."""
    left = plan.store.read_tagged(plan.prefix + scene.done)
    if left is None:
        return None
    requests = pq.read_table(io.BytesIO(left.data))
    told: dict[str, Any] = json.loads(requests.schema.metadata[_SUMMARY])
    digest = FileDigest(**told["file"])
    if plan.store.size(cog_key(plan.prefix, digest)) != digest.size:
        return None
    return told, requests.replace_schema_metadata(None)


def _write(scene: FetchScene, plan: FetchPlan, settings: CogSettings, path: Path) -> tuple[pa.Table, dict[tuple[int, int], int], int]:
    """Write the tiles of all pieces into one file; return the requests, a sum of each tile's pixels, and how many pixels hold data.

    Raises:
        DamagedError: a piece does not hold all of its tiles.
    """
    image = scene.image
    sums: dict[tuple[int, int], int] = {}
    rows: list[dict[str, Any]] = []
    valid = 0
    with _environment(), rasterio.open(path, "w", **_profile(scene, settings)) as file:
        file.update_tags(**({"ACQUISITION_DATE": taken} if (taken := when(scene)) else {}))
        for piece in range(scene.pieces):
            for row in read_piece(plan.store, piece_key(plan.prefix, scene, piece)):
                if row["outcome"] == FAILED:
                    raise AssertionError(f"{row['url']} is missing, so that {scene.scene_id} cannot be put together")
                place = row["row"], row["col"]
                window = image.window(*place)
                values, has = _tile(row.pop("body"), scene, settings)
                values, has = values[:, : window.height, : window.width], has[: window.height, : window.width]
                at = rasterio.windows.Window(window.col, window.row, window.width, window.height)
                file.write(values, window=at)
                if image.bands < _WITH_OPACITY:
                    file.write_mask(has, window=at)
                sums[place] = _sum(values)
                valid += int(has.sum())
                rows.append(row)
    if len(sums) != scene.requests:
        # of a killed command a worker may have lived on, and put what it had in place of what this one has
        raise DamagedError(f"{scene.requests - len(sums):,} tiles of {scene.scene_id} are not there any more; run the same command again")
    return pa.Table.from_pylist(rows, schema=REQUESTS), sums, valid


def _environment() -> rasterio.Env:
    return rasterio.Env(rasterio.session.DummySession(), GDAL_TIFF_INTERNAL_MASK=True)


def _profile(scene: FetchScene, settings: CogSettings) -> dict[str, Any]:
    image = scene.image
    fits = image.tile_width % _MULTIPLE == 0 and image.tile_height % _MULTIPLE == 0
    colours = {"photometric": "MINISBLACK"} if image.bands == 1 else {"photometric": "RGB"}
    return {
        "driver": "GTiff",
        "height": image.height,
        "width": image.width,
        "count": image.bands,
        "dtype": "uint8",
        "crs": image.crs,
        "transform": affine.Affine(*image.grid.transform),
        "tiled": True,
        "blockxsize": image.tile_width if fits else _BLOCK,
        "blockysize": image.tile_height if fits else _BLOCK,
        "compress": settings.compress,
        "bigtiff": "IF_SAFER",
        **colours,
        **({"alpha": "YES"} if image.bands == _WITH_OPACITY else {}),
    }


def _tile(body: bytes, scene: FetchScene, settings: CogSettings) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return a tile's pixels (bands, h, w) and which hold data (h, w); zeros where the service has none."""
    image = scene.image
    shape = image.tile_height, image.tile_width
    if not body:
        return np.zeros((image.bands, *shape), np.uint8), np.zeros(shape, np.bool_)
    values = pixels_of(body, bands=image.bands, height=shape[0], width=shape[1])
    if image.bands == _WITH_OPACITY:
        return values, values[3] != 0
    missing = image.nodata if image.nodata is not None else settings.nodata
    return values, np.ones(shape, np.bool_) if missing is None else (values != missing).any(axis=0)


def _optimise(plain: Path, cog: Path, settings: CogSettings) -> None:
    with _environment():
        rasterio.shutil.copy(
            plain,
            cog,
            driver="COG",
            compress=settings.compress,
            predictor="YES",
            blocksize=_BLOCK,
            overview_resampling="AVERAGE",
            bigtiff="IF_SAFER",
        )


def _compare(scene: FetchScene, cog: Path, sums: Mapping[tuple[int, int], int]) -> None:
    """Read every tile back.

    Raises:
        DamagedError: one differs.
    """
    image = scene.image
    with _environment(), rasterio.open(cog) as file:
        if file.shape != (image.height, image.width) or file.count != image.bands or set(sums) != set(image.tiles()):
            raise DamagedError(f"{scene.scene_id}: what was written has {file.shape} pixels and {file.count} bands; run again")
        for place, expected in sums.items():
            window = image.window(*place)
            at = rasterio.windows.Window(window.col, window.row, window.width, window.height)
            if _sum(file.read(window=at)) != expected:
                raise DamagedError(f"{scene.scene_id}: the tile {image.address(*place)} was written wrong; check the disk and run again")


def _sum(values: np.ndarray[Any, Any]) -> int:
    return functools.reduce(lambda total, band: zlib.crc32(band.tobytes(), total), values, 0)
