"""The Ray Serve application: an ingress that speaks HTTP and searches, encoders that embed uploaded images, and a watcher of the index.

`build_app` is the typed builder that `serve run` and Serve's YAML take. Ray Serve reads the type of its argument, so that annotations
here are not postponed.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import fastapi
import numpy as np
import ray.serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from rayjobs.rasters.uploads import UploadLimits
from rayjobs.serve.answers import Answers
from rayjobs.serve.api import build_api
from rayjobs.serve.calls import answering
from rayjobs.serve.held import Held, Target
from rayjobs.serve.labelling import Labelling
from rayjobs.serve.observe import SERVED, stage
from rayjobs.serve.section import ServiceSection
from rayjobs.serve.settings import AppSettings
from rayjobs.serve.shards import Shard, names_of, open_answers
from rayjobs.serve.tokens import tokens_of
from rayjobs.serve.watch import Watcher
from rayjobs.storage import open_store

__all__ = ["AppSettings", "Ingress", "build_app"]

Array = np.ndarray[Any, Any]

_MEBIBYTE = 2**20
_HEALTH_CHECK_PERIOD_S = 2
"""A process that was killed is missed after so long at most; Ray Serve's own 10 s would be most of the time until another is there."""

_LOGGING = LoggingConfig(encoding="JSON", enable_access_log=False)  # ours is the line of each request


class Ingress:
    """Speaks HTTP and searches the index: in its own process, since a further hop would halve the throughput, unless there are shards."""

    def __init__(
        self,
        settings: AppSettings,
        encoder: DeploymentHandle[Any],
        watcher: DeploymentHandle[Any],
        shards: Sequence[DeploymentHandle[Any]] = (),
    ) -> None:
        """Hold no index before `reconfigure` names a version."""
        self._service, self._settings, self._encoder, self._watcher, self._shards = settings.service, settings, encoder, watcher, shards
        self._held: Held[Answers] = Held(self._load)
        self.labelling = Labelling(open_store(settings.workspace), lease_s=settings.service.label_lease_s)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take up an index version beside the running requests; see `Held.follow`."""
        await self._held.follow(user_config)
        for place, version in enumerate(self._held.versions):
            SERVED.set(float(place == 0), tags={"index_version": version})

    def _load(self, version: str) -> Answers:
        """Open an index version; segments are checked against their digests before anything else reads them."""
        return open_answers(self._settings, version, self._shards)

    @property
    def answers(self) -> Answers:
        """The index version that is served now."""
        return self._held.current

    @property
    def versions(self) -> list[str]:
        """Names of the index versions that a request may pin, the current one first."""
        return self._held.versions

    @property
    def last_error(self) -> str | None:
        """Why a later version was not taken up."""
        return self._held.last_error

    def pinned(self, version: str | None) -> Answers:
        """Return an index version by name; None stands for the current one. Raises `PinnedVersionError`."""
        return self._held.pinned(version)

    def uploads_for(self, answers: Answers) -> UploadLimits:
        """Return what an uploaded image must keep to that is searched for in an index version."""
        return UploadLimits(
            modalities=answers.spec.modalities[:2],  # a map alone would be told from a grey picture by nothing
            dtype=answers.spec.dtype,
            max_pixels=int(self._service.max_upload_megapixels * 1e6),
            max_bytes=int(self._service.max_decoded_mb * _MEBIBYTE),
        )

    async def embed(self, pixels: Array, valid: Array, answers: Answers) -> Array:
        """Have an encoder embed an image as the vectors of an index version were made.

        Raises:
            ServiceError: no encoder is free, or the one that was asked has ended.
        """
        with stage("embed"), answering("no encoder is free to embed the image"):
            vector: Array = await self._encoder.embed.remote(pixels, valid, answers.version)
        return vector

    async def refresh(self) -> Target:
        """Have the watcher look at once which index version is current. Raises `ServiceError` where it does not answer."""
        with answering("the watcher does not answer"):
            return Target.model_validate(await self._watcher.refresh.remote())


def api_of(settings: AppSettings) -> fastapi.FastAPI:
    """Return the HTTP interface of one replica of the ingress.

    The tokens that requests must bear are read here, where the ingress runs, so that they are kept nowhere else.

    Raises:
        ConfigError: the settings require a token, and the replica's environment has none.
    """
    return build_api(settings.service, tokens_of(os.environ, required=settings.token_required))


def build_app(settings: AppSettings) -> ray.serve.Application:
    """Bind all deployments to one index version first, which replicas that start later get from Ray Serve too."""
    from rayjobs.serve.encoder import Encoder  # noqa: PLC0415  which loads torch, of which the ingress's processes need nothing

    service = settings.service
    target = Target(index_version=settings.version().version).model_dump()

    def api() -> fastapi.FastAPI:
        return api_of(settings)

    watching = ray.serve.deployment(user_config=target, ray_actor_options={"num_cpus": 0})(Watcher)
    encoding = ray.serve.deployment(user_config=target, **_load_of(service, service.encoders, service.max_encoders))(Encoder)
    serving = ray.serve.deployment(
        user_config=target, logging_config=_LOGGING, **_load_of(service, service.replicas, service.max_replicas)
    )(ray.serve.ingress(api)(Ingress))
    shards = _shards(settings, target)
    encoder = encoding.bind(settings, shards)
    bound: ray.serve.Application = serving.bind(settings, encoder, watching.bind(settings, encoder), shards)
    return bound


def _shards(settings: AppSettings, target: Mapping[str, Any]) -> list[ray.serve.Application]:
    """Bind the shards; none where the ingress searches itself."""
    service = settings.service
    memory = {} if service.shard_memory_mb is None else {"memory": int(service.shard_memory_mb * _MEBIBYTE)}
    options = {
        "user_config": target,
        "ray_actor_options": {"num_cpus": service.shard_cpus, **memory},
        **_load_of(service, service.searchers, None),
    }
    names = enumerate(names_of(service.shards))
    return [ray.serve.deployment(name=name, **options)(Shard).bind(settings, number) for number, name in names]


def _load_of(service: ServiceSection, least: int, most: int | None) -> dict[str, Any]:
    """Return the options of a deployment that say how many processes bear how much, and what happens beyond."""
    options: dict[str, Any] = {
        "max_ongoing_requests": service.max_ongoing_requests,
        "max_queued_requests": service.max_queued_requests,
        "backpressure_config": BackpressureConfig(status_code=503, retry_after_s=service.retry_after_s),
        "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
    }
    if most is None:
        return {**options, "num_replicas": least}
    scaling = AutoscalingConfig(min_replicas=least, max_replicas=most, target_ongoing_requests=service.target_ongoing_requests)
    return {**options, "autoscaling_config": scaling}
