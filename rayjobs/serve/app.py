"""The Ray Serve application: an ingress that speaks HTTP and searches, and encoders that embed uploaded images.

`build_app` is the typed builder that `serve run` and Serve's YAML take. Ray Serve reads the type of its argument, so that annotations
here are not postponed.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import fastapi
import numpy as np
import pydantic
import ray.serve
import torch
from ray.serve.handle import DeploymentHandle

from rayjobs.embed.stack import stack_arrays
from rayjobs.models.checkpoint import from_files
from rayjobs.rasters.uploads import UploadLimits
from rayjobs.serve.answers import Answers
from rayjobs.serve.api import build_api
from rayjobs.serve.limits import token_of
from rayjobs.serve.section import ServiceSection
from rayjobs.storage import Artefact, Version, open_store

Array = np.ndarray[Any, Any]

_MEBIBYTE = 2**20


class AppSettings(pydantic.BaseModel):
    """What the application is built from; the `args` of a Serve YAML."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    workspace: str
    """URI of the workspace."""
    index: str
    """Name of the index."""
    index_version: str | None = None
    """What all replicas load, whenever they start; None takes the version that is current when the application is built."""
    token_required: bool = False
    """Whether a replica without RAYJOBS_TOKEN in its environment refuses to start."""
    service: ServiceSection = ServiceSection()
    """Keys of the experiment's `serve` section, `host`, `port` and `request_timeout_s` apart: those are Ray Serve's own."""

    def version(self) -> Version:
        """Return the index version to serve. Raises `NotFoundError` where it is not there."""
        index = Artefact(open_store(self.workspace), "indexes", self.index)
        return index.require("run `rayjobs index` first") if self.index_version is None else index.at(self.index_version)


class Encoder:
    """Embeds uploaded images, several together."""

    def __init__(self, settings: AppSettings) -> None:
        """Load the encoder that made the index."""
        version = settings.version()
        self._encoder = from_files(version.read("encoder/model.json"), version.read("encoder/model.safetensors"))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._encoder.module.eval().to(self._device)
        self._embed.set_max_batch_size(settings.service.max_batch_size)  # type: ignore[attr-defined]  # Ray adds it to batched methods

    async def embed(self, pixels: Array, valid: Array) -> Array:
        """Return the (dim,) float32 embedding of one image of (bands, height, width)."""
        vector: Array = await self._embed((pixels, valid))
        return vector

    @ray.serve.batch(max_batch_size=16, batch_wait_timeout_s=0.002)
    async def _embed(self, images: list[tuple[Array, Array]]) -> list[Array]:
        pixels, valid = stack_arrays(images, self._encoder.spec.tile_size)
        with torch.inference_mode():
            vectors = self._encoder.module(pixels.to(self._device), valid.to(self._device)).cpu().numpy()
        return list(vectors)


class Ingress:
    """Speaks HTTP and searches the index in its own process, since a further hop would halve the throughput."""

    def __init__(self, settings: AppSettings, encoder: DeploymentHandle[Any]) -> None:
        """Load the index; segments are checked against their digests before anything else reads them."""
        self._encoder = encoder
        version = settings.version()
        cache = Path(tempfile.gettempdir(), "rayjobs-index")
        self.answers = Answers(version.store, version, cache=cache, max_limit=settings.service.max_limit)
        self.uploads = UploadLimits(
            bands=self.answers.spec.bands,
            max_pixels=int(settings.service.max_upload_megapixels * 1e6),
            max_bytes=int(settings.service.max_decoded_mb * _MEBIBYTE),
        )

    async def embed(self, pixels: Array, valid: Array) -> Array:
        """Have an encoder embed an image."""
        vector: Array = await self._encoder.embed.remote(pixels, valid)
        return vector


def api_of(settings: AppSettings) -> fastapi.FastAPI:
    """Return the HTTP interface of one replica of the ingress.

    The token that requests must bear is RAYJOBS_TOKEN, read here, where the ingress runs, so that it is kept nowhere else.

    Raises:
        ConfigError: the settings require a token, and the replica's environment has none.
    """
    token = token_of(os.environ, required=settings.token_required)
    return build_api(max_body_bytes=int(settings.service.max_upload_mb * _MEBIBYTE), token=token)


def build_app(settings: AppSettings) -> ray.serve.Application:
    """Bind ingress and encoders, all to one index version, which replicas that start later load too."""
    pinned = settings.model_copy(update={"index_version": settings.version().version})

    def api() -> fastapi.FastAPI:
        return api_of(pinned)

    encoder = ray.serve.deployment(num_replicas=pinned.service.encoders)(Encoder)
    ingress = ray.serve.deployment(num_replicas=pinned.service.replicas)(ray.serve.ingress(api)(Ingress))
    bound: ray.serve.Application = ingress.bind(pinned, encoder.bind(pinned))
    return bound
