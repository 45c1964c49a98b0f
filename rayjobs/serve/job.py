"""The driver's side of `rayjobs serve`: check the index, start Ray Serve, and stay until told to end."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from rayjobs.cluster.session import joined
from rayjobs.embed.encoder import chosen_encoder
from rayjobs.errors import ConfigError, FingerprintError
from rayjobs.retrieval.manifest import read_index_manifest
from rayjobs.serve import haproxy
from rayjobs.serve.deploy import deployed
from rayjobs.serve.settings import AppSettings
from rayjobs.serve.tokens import tokens_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rayjobs.console import Console
    from rayjobs.experiment import Experiment
    from rayjobs.retrieval.manifest import IndexManifest
    from rayjobs.serve.section import ServeSection
    from rayjobs.storage import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What `rayjobs serve` tells at its end."""

    url: str
    index_version: str


def preview(experiment: Experiment) -> dict[str, Any]:
    """Return what the service would serve, and what the largest of its shards maps into memory."""
    version = _checked_index(experiment)
    manifest = read_index_manifest(version.manifest, version.version)
    return {
        "url": _url(experiment),
        "index_version": version.version,
        "rows": sum(entry.rows for entry in manifest.segments),
        "shards": experiment.serve.shards,
        "mapped_bytes_per_shard": max(_bytes_of_shards(version, manifest, experiment.serve.shards)),
    }


def _bytes_of_shards(version: Version, manifest: IndexManifest, shards: int) -> list[int]:
    """Return the size of the vectors and codes that each shard maps."""
    sizes = {entry.name: entry.size for entry in version.files}
    segments = [sizes[f"{entry.name}.vectors"] + sizes.get(f"{entry.name}.faiss", 0) for entry in manifest.segments]
    return [sum(segments[shard::shards]) for shard in range(shards)]


def run(experiment: Experiment, console: Console) -> Result:
    """Serve the published index until SIGINT or SIGTERM."""
    workspace = experiment.open_workspace()
    workspace.store.check()
    version = _checked_index(experiment)
    settings = _settings(experiment, version)
    with joined(experiment.ray, workspace=workspace.store.uri, shared=workspace.shared, say=console.say):
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray's start, which takes SIGTERM for itself
            signal.signal(number, _interrupt)
        console.say(f"serve            starting index {workspace.index.name} {version.version}")
        with deployed(
            settings.model_dump(mode="json"),
            _options(experiment.serve),
            say=lambda words: console.say(f"serve            waiting: {words}"),
        ):
            _tell(console, experiment, version)
            _stay(console)
    return Result(url=_url(experiment), index_version=version.version)


def _settings(experiment: Experiment, version: Version) -> AppSettings:
    """Return what the replicas are built from; no token is in it.

    Raises:
        ConfigError: a token is empty.
    """
    return AppSettings(
        workspace=version.store.uri,
        index=version.manifest["name"],
        index_version=version.version,
        token_required=tokens_of(os.environ, required=False) is not None,
        service=experiment.serve,
    )


def _options(settings: ServeSection) -> dict[str, Any]:
    """Return the options of `ray.serve.start`."""
    options: dict[str, Any] = {
        "http_options": {"host": settings.host, "port": settings.port, "request_timeout_s": settings.request_timeout_s},
        "controller_options": {"runtime_env": {"env_vars": _variables(settings, os.environ)}},
    }
    if settings.trace_exporter:
        traced = {"enabled": True, "exporter_import_path": settings.trace_exporter, "sampling_ratio": settings.trace_share}
        options["tracing_config"] = traced
    return options


def _variables(settings: ServeSection, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of Ray Serve's processes; what the environment says of Ray Serve goes before what we say.

    Raises:
        ConfigError: HAProxy is wanted, and is not installed.
    """
    ours = {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2"}
    if settings.proxy == "haproxy":
        binary = Path(sys.executable).with_name(haproxy.COMMAND)
        if not binary.exists():
            raise ConfigError(f"serve.proxy haproxy needs {binary}; install rayjobs anew, or use --serve.proxy python")
        most = int(settings.max_upload_mb * 2**20)
        ours |= haproxy.environment(binary=str(binary), max_body_bytes=most, retry_after_s=settings.retry_after_s)
    return ours | {name: value for name, value in environment.items() if name.startswith("RAY_SERVE_")}


def _stay(console: Console) -> None:
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.say("serve            ending")


def _some_tile(version: Version) -> str:
    """Return a tile to begin with."""
    first = read_index_manifest(version.manifest, version.version).segments[0].name
    table = pq.read_table(io.BytesIO(version.read(f"{first}.parquet")), columns=["tile_id"])
    return str(table["tile_id"][0])


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _url(experiment: Experiment) -> str:
    return f"http://{experiment.serve.host}:{experiment.serve.port}"


def _checked_index(experiment: Experiment) -> Version:
    """Return the published index, if the experiment's encoder made it.

    Raises:
        FingerprintError: the run was trained further, or is another; the registered model is another.
    """
    workspace = experiment.open_workspace()
    version = workspace.index.require("run `rayjobs index` first")
    made_by = read_index_manifest(version.manifest, workspace.store.address(version.prefix)).encoder_fingerprint
    if experiment.workspace.encoder is None and workspace.checkpoints.current() is None:
        return version  # an index that came without its run
    wanted = chosen_encoder(experiment)
    if wanted.fingerprint != made_by:
        raise FingerprintError(
            f"index {workspace.index.name} {version.version} was made by encoder {made_by[:12]}, but the experiment's is {wanted.words}; "
            "run `rayjobs index`, or name the index's own run with --workspace.run or its model with --workspace.encoder"
        )
    return version


def _tell(console: Console, experiment: Experiment, version: Version) -> None:
    url = _url(experiment)
    body = json.dumps({"positives": [{"tile_id": _some_tile(version)}], "limit": 5})
    console.say(f"serve            ready: {url}/docs describes it; end with Ctrl-C")
    console.say(f"serve            curl -s {url}/v1/search -H 'content-type: application/json' -d '{body}'")
