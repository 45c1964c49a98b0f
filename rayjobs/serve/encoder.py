"""The deployment that embeds uploaded images, and that tries an index version before it is served.

Ray Serve reads the type of a method's argument, so that annotations here are not postponed.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray.serve
import torch
from ray.serve.handle import DeploymentHandle

from rayjobs.embed.stack import stack_arrays
from rayjobs.models.checkpoint import Checkpointed, from_files
from rayjobs.serve.held import Held
from rayjobs.serve.settings import AppSettings
from rayjobs.serve.shards import open_answers
from rayjobs.serve.trial import compare

Array = np.ndarray[Any, Any]
Image = tuple[Array, Array]
"""Pixels (bands, height, width), and which are valid (height, width)."""


class LoadedEncoder:
    """The encoder of one index version, on this process's device."""

    def __init__(self, checkpointed: Checkpointed, version: str) -> None:
        """Take the encoder of an index version by name."""
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._module, self._spec = checkpointed.module.eval().to(self._device), checkpointed.spec
        self.version = version

    @torch.inference_mode()
    def embed(self, images: Sequence[Image]) -> Array:
        """Return the (images, dim) float32 embeddings."""
        pixels, valid = stack_arrays(images, self._spec.tile_size, nearest=self._spec.maps_of(len(images[0][0])))
        vectors: Array = self._module(pixels.to(self._device), valid.to(self._device)).float().cpu().numpy()
        return vectors


class Encoder:
    """Embeds uploaded images, several together, each by the encoder of the index version that its request is answered from."""

    def __init__(self, settings: AppSettings, shards: Sequence[DeploymentHandle[Any]] = ()) -> None:
        """Hold no encoder before `reconfigure` names a version."""
        self._settings, self._shards = settings, shards
        self._held: Held[LoadedEncoder] = Held(self._load)
        self._embed.set_max_batch_size(settings.service.max_batch_size)  # type: ignore[attr-defined]  # Ray adds it to batched methods

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take up the encoder of a version; see `Held.follow`."""
        await self._held.follow(user_config)

    async def refusal(self, version: str) -> str | None:
        """Try an index version that is published: open it, check every digest, and embed some of its tiles anew.

        Returns:
            Why it cannot be served, in one sentence; None where it can.
        """
        try:
            await asyncio.to_thread(self._load, version)
        except Exception as error:  # noqa: BLE001  whatever is wrong with it, the version that is served stays
            return str(error) or repr(error)
        return None

    async def embed(self, pixels: Array, valid: Array, version: str) -> Array:
        """Return the (dim,) float32 embedding of one image of (bands, height, width) by the encoder of an index version."""
        encoder = await self._held.ensure(version)  # this process may not have been told yet what the ingress serves
        vector: Array = await self._embed((encoder, (pixels, valid)))
        return vector

    def _load(self, version: str) -> LoadedEncoder:
        published = self._settings.at(version)
        encoder = LoadedEncoder(from_files(published.read("encoder/model.json"), published.read("encoder/model.safetensors")), version)
        answers = open_answers(self._settings, version, self._shards)
        compare(answers, encoder.embed, self._settings.service.check_tiles)
        return encoder

    @ray.serve.batch(max_batch_size=16, batch_wait_timeout_s=0.002)
    async def _embed(self, asked: list[tuple[LoadedEncoder, Image]]) -> list[Array]:
        return await embed_together(asked)


async def embed_together(asked: Sequence[tuple[LoadedEncoder, Image]]) -> list[Array]:
    """Embed images, those of one encoder and number of bands in one go; while another version is taken up there are two encoders.

    Returns:
        (dim,) float32 for each image, in their order.
    """
    embedded: list[Array] = [np.empty(0)] * len(asked)
    alike: dict[tuple[int, int], list[int]] = {}
    for place, (encoder, (pixels, _)) in enumerate(asked):
        alike.setdefault((id(encoder), len(pixels)), []).append(place)
    for places in alike.values():
        encoder = asked[places[0]][0]
        vectors = await asyncio.to_thread(encoder.embed, [asked[place][1] for place in places])
        for place, vector in zip(places, vectors, strict=True):
            embedded[place] = vector
    return embedded
