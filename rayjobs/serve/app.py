"""The Ray Serve application: an ingress that speaks HTTP and searches, and encoders that embed uploaded images.

`build_app` is the typed builder that `serve run` and Serve's YAML take.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic
import torch
from ray import serve

from rayjobs.embed.stack import stack_arrays
from rayjobs.models.checkpoint import from_files
from rayjobs.serve.answers import Answers
from rayjobs.serve.api import build_api
from rayjobs.storage import Artefact, Version, open_store

if TYPE_CHECKING:
    import fastapi
    from ray.serve.handle import DeploymentHandle

Array = np.ndarray[Any, Any]

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

    def version(self) -> Version:
        """Return the published index."""
        return Artefact(open_store(self.workspace), "indexes", self.index).require("run `rayjobs index` first")


class Encoder:
    """Embeds uploaded images, several together."""

    def __init__(self, settings: AppSettings) -> None:
        """Load the encoder that made the index."""
        version = settings.version()
        self._encoder = from_files(version.read("encoder/model.json"), version.read("encoder/model.safetensors"))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._encoder.module.eval().to(self._device)
        self._embed.set_max_batch_size(settings.max_batch_size)  # type: ignore[attr-defined]  # Ray adds it to batched methods

    async def embed(self, pixels: Array, valid: Array) -> Array:
        """Return the (dim,) float32 embedding of one image of (bands, height, width)."""
        vector: Array = await self._embed((pixels, valid))
        return vector

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.002)
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
        self.max_pixels = int(settings.max_upload_megapixels * 1e6)
        version = settings.version()
        self.answers = Answers(version.store, version, cache=Path(tempfile.gettempdir(), "rayjobs-index"), max_limit=settings.max_limit)

    async def embed(self, pixels: Array, valid: Array) -> Array:
        """Have an encoder embed an image."""
        vector: Array = await self._encoder.embed.remote(pixels, valid)
        return vector


def build_app(settings: AppSettings) -> serve.Application:
    """Bind ingress and encoders.

    The token that requests must bear is RAYJOBS_TOKEN, read where the ingress runs, so that it is kept nowhere else.
    """
    limit = int(settings.max_upload_mb * _MEBIBYTE)

    def api() -> fastapi.FastAPI:
        return build_api(max_body_bytes=limit, token=os.environ.get("RAYJOBS_TOKEN"))

    encoder = serve.deployment(num_replicas=settings.encoders)(Encoder)
    ingress = serve.deployment(num_replicas=settings.replicas)(serve.ingress(api)(Ingress))
    bound: serve.Application = ingress.bind(settings, encoder.bind(settings))
    return bound
