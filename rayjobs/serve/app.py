"""The Ray Serve application: an ingress that speaks HTTP and searches, and encoders that embed uploaded images.

`build_app` is the typed builder that `serve run` and Serve's YAML take.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import fastapi
import numpy as np
import pydantic
import torch
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from ray import serve

from rayjobs.embed.stack import stack_arrays
from rayjobs.errors import QueryError, RayjobsError
from rayjobs.models.checkpoint import from_files
from rayjobs.models.spec import check_bands
from rayjobs.rasters.uploads import read_upload
from rayjobs.serve.answers import Answers
from rayjobs.serve.errors import problem, status_of
from rayjobs.serve.limits import Gate
from rayjobs.serve.schema import Feature, Filters, Info, SearchAnswer, SearchRequest, TileId
from rayjobs.storage import Artefact, open_store

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

_MEBIBYTE = 2**20


class AppSettings(pydantic.BaseModel):
    """What the application is built from; the `args` of a Serve YAML."""

    model_config = pydantic.ConfigDict(extra="forbid")

    workspace: str
    """URI of the workspace."""
    index: str
    """Name of the index."""
    replicas: int = 1
    encoders: int = 1
    max_batch_size: int = 16
    max_limit: int = 1000
    max_upload_mb: float = 32.0
    max_upload_megapixels: float = 25.0


api = fastapi.FastAPI(title="rayjobs", version="1", description="Find every place that looks like the one you point at.")


@api.exception_handler(RayjobsError)
async def _our_error(_: fastapi.Request, error: RayjobsError) -> JSONResponse:
    status = status_of(type(error))
    return JSONResponse(problem(status, str(error)), int(status), media_type="application/problem+json")


@api.exception_handler(RequestValidationError)
async def _wrong_request(_: fastapi.Request, error: RequestValidationError) -> JSONResponse:
    faults = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()]
    status = fastapi.status.HTTP_422_UNPROCESSABLE_CONTENT
    body = {"type": "about:blank", "title": "Unprocessable Content", "status": status, "detail": "; ".join(faults)}
    return JSONResponse(body, status, media_type="application/problem+json")


@serve.deployment
class Encoder:
    """Embeds uploaded images, several together."""

    def __init__(self, settings: AppSettings) -> None:
        """Load the encoder that made the index."""
        version = Artefact(open_store(settings.workspace), "indexes", settings.index).require("run `rayjobs index` first")
        files = {"model_json": version.read("encoder/model.json"), "tensors": version.read("encoder/model.safetensors")}
        self._encoder = from_files(**files)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._encoder.module.eval().to(self._device)
        self._embed.set_max_batch_size(settings.max_batch_size)  # type: ignore[attr-defined]  # Ray adds it to batched methods

    async def embed(self, pixels: np.ndarray[Any, Any], valid: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the (dim,) float32 embedding of one image of (bands, height, width)."""
        vector: np.ndarray[Any, Any] = await self._embed((pixels, valid))
        return vector

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.002)
    async def _embed(self, images: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> list[np.ndarray[Any, Any]]:
        pixels, valid = stack_arrays(images, self._encoder.spec.tile_size)
        with torch.inference_mode():
            vectors = self._encoder.module(pixels.to(self._device), valid.to(self._device)).cpu().numpy()
        return list(vectors)


@serve.deployment
@serve.ingress(api)
class Ingress:
    """Speaks HTTP and searches the index in its own process, since a further hop would halve the throughput."""

    def __init__(self, settings: AppSettings, encoder: DeploymentHandle) -> None:
        """Load the index; segments are checked against their digests before anything else reads them."""
        self._settings, self._encoder = settings, encoder
        store = open_store(settings.workspace)
        version = Artefact(store, "indexes", settings.index).require("run `rayjobs index` first")
        self._answers = Answers(store, version, cache=Path(tempfile.gettempdir(), "rayjobs-index"), max_limit=settings.max_limit)

    @api.get("/healthz", tags=["service"])
    async def healthz(self) -> dict[str, str]:
        """Say that the service is up, and which index version it serves."""
        return {"status": "ok", "index_version": self._answers.version}

    @api.get("/v1/info", tags=["service"])
    async def info(self) -> Info:
        """Describe the index and its encoder."""
        return self._answers.info()

    @api.post("/v1/search", tags=["search"])
    async def search(self, request: SearchRequest) -> SearchAnswer:
        """Find the tiles most like the examples; the examples themselves are left out."""
        vector, examples = self._answers.query_vector(request.positives)
        return self._answers.search(vector, request, without=examples)

    @api.post("/v1/search/image", tags=["search"])
    async def search_image(
        self,
        image: fastapi.UploadFile,
        limit: Annotated[int, fastapi.Form(ge=1)] = 10,
        bbox: Annotated[str | None, fastapi.Form(max_length=200, description="west,south,east,north")] = None,
        datetime: Annotated[str | None, fastapi.Form(max_length=100)] = None,
    ) -> SearchAnswer:
        """Find the tiles most like an uploaded PNG, JPEG or GeoTIFF, whose bands must be the encoder's."""
        filters = Filters(limit=limit, bbox=_numbers(bbox), datetime=datetime)
        pixels = read_upload(await image.read(), max_pixels=int(self._settings.max_upload_megapixels * 1e6))
        check_bands(self._answers.spec, len(pixels.values))
        vector = await self._encoder.embed.remote(pixels.values, pixels.valid)
        return self._answers.search(vector, filters, without=())

    @api.get("/v1/tiles/{tile_id}", tags=["tiles"])
    async def tile(self, tile_id: TileId) -> Feature:
        """Describe one tile."""
        return self._answers.tile(tile_id)

    @api.get("/v1/tiles/{tile_id}/thumbnail.png", tags=["tiles"], response_class=Response)
    def thumbnail(self, tile_id: TileId) -> Response:
        """Show one tile's pixels."""
        return Response(self._answers.thumbnail(tile_id), media_type="image/png", headers={"cache-control": "max-age=86400"})


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise QueryError(f"bbox {text!r} is not four numbers: west,south,east,north") from None


def build_app(settings: AppSettings) -> serve.Application:
    """Bind ingress and encoders.

    The body limit and the token (RAYJOBS_TOKEN, if set) are checked in front of the application.
    """
    if not any(middleware.cls is Gate for middleware in api.user_middleware):
        limit = int(settings.max_upload_mb * _MEBIBYTE)
        api.add_middleware(Gate, max_body_bytes=limit, token=os.environ.get("RAYJOBS_TOKEN"))
    encoder = Encoder.options(num_replicas=settings.encoders).bind(settings)
    return Ingress.options(num_replicas=settings.replicas).bind(settings, encoder)
