"""Ray as the verbs need it: joined or started for the length of a command, authenticated, silent."""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray

from rayjobs.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rayjobs.cluster.section import RaySection

_FORWARDED = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "GDAL_", "CPL_", "RAYJOBS_")
"""Variables, by prefix, that workers of a joined cluster get from the driver. Never AWS keys: a node has its own, or a role. The
service's token (RAYJOBS_TOKEN) is among them: who sees the cluster's dashboard sees it."""


@contextmanager
def joined(
    settings: RaySection, *, workspace: str, shared: bool, say: Callable[[str], None] | None = None, target: str | None = None
) -> Iterator[None]:
    """Join a cluster or start a local Ray for the length of the block, which takes seconds and is said first.

    Args:
        settings: the section.
        workspace: its URI.
        shared: as `workspace.shared`; said of the target, too.
        say: told what takes seconds.
        target: URI of a further folder that workers write to.

    Raises:
        ClusterError: Ray does not start.
        ConfigError: no cluster answers, or a `file:` workspace or target would be seen by one node of several.
    """
    address = _address(settings)
    already = ray.is_initialized()
    if not already:
        if say is not None:
            say(f"ray              joining the cluster at {address}" if address else "ray              starting Ray on this machine")
        _start(settings, address)
    try:
        _check_folder("workspace", workspace, shared=shared)
        _check_folder("target", target or workspace, shared=shared)
        _quieten()
        _end_as_if_interrupted()
        yield
    finally:
        if not already:
            ray.shutdown()


def _address(settings: RaySection) -> str | None:
    return settings.address or os.environ.get("RAY_ADDRESS") or None


def is_joined(settings: RaySection) -> bool:
    """Whether a cluster is joined; else Ray is started on this machine."""
    return _address(settings) is not None


def cpus_here(settings: RaySection) -> int:
    """Return the CPUs of a Ray that is started on this machine."""
    return settings.num_cpus or os.cpu_count() or 1


def require_cpus(settings: RaySection, wanted: int, what: str, say: Callable[[str], None]) -> None:
    """Check that Ray has the CPUs for something; of a joined cluster, which may grow, say it where it has not.

    Args:
        settings: the section.
        wanted: CPUs.
        what: wants them, with its key.
        say: told.

    Raises:
        ConfigError: this machine has fewer.
    """
    have = int(ray.cluster_resources().get("CPU", 0))
    if wanted <= have:
        return
    if not is_joined(settings):
        raise ConfigError(f"{what}: this machine has {have} for Ray; lower it, or join a cluster (ray.address)")
    say(f"ray              {what}: the cluster has {have} CPUs now; waiting for it to grow")


def _start(settings: RaySection, address: str | None) -> None:
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        if address is not None:
            ray.init(address=address, runtime_env=_environment_of_workers(), **common)
        else:
            memory = settings.object_store_mb * 2**20
            _start_here(num_cpus=settings.num_cpus, object_store_memory=memory, include_dashboard=False, **common)
    except ConnectionError as error:
        raise ConfigError(
            f"no Ray cluster answers at {address}: {error}; start one, unset RAY_ADDRESS to work locally, "
            "or, if the cluster asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error


def _start_here(**options: Any) -> None:
    """Start a local Ray; once more where the machine was too busy for Ray's own patience of half a minute.

    Raises:
        ClusterError: it does not start.
    """
    for last in (False, True):
        try:
            ray.init("local", **options)
        except Exception as error:  # Ray raises just that
            if isinstance(error, ConnectionError | ValueError):
                raise
            ray.shutdown()
            if last:
                raise ClusterError(
                    f"Ray does not start on this machine: {str(error).splitlines()[0]} Try again when it is less busy, with "
                    "--ray.num_cpus 1 or less --ray.object_store_mb, or set RAY_ADDRESS to a cluster that runs"
                ) from error
        else:
            return


def _environment_of_workers() -> dict[str, Any] | None:
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # a submitted job has its environment already, and Ray merges no two
        return None
    return {"env_vars": {name: value for name, value in os.environ.items() if name.startswith(_FORWARDED)}}


def _check_folder(what: str, uri: str, *, shared: bool) -> None:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if uri.startswith("file:") and len(nodes) > 1 and not shared:
        raise ConfigError(
            f"the {what} {uri} is a folder, and the cluster has {len(nodes)} nodes; "
            "use s3://BUCKET/PREFIX, or set workspace.shared: true if every node mounts that folder"
        )


def _quieten() -> None:
    import ray.data  # noqa: PLC0415

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _end_as_if_interrupted() -> None:
    """Have SIGTERM, such as `ray job stop` sends, end a command in order: what it holds is given back, and it says how to go on.

    After Ray's start, which takes the signal for itself.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def even_cpus(workers: int) -> int:
    """Return the most CPUs that each of so many workers can have, each on one node; at least 1."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return max((cpus for cpus in range(1, max(nodes, default=1) + 1) if sum(node // cpus for node in nodes) >= workers), default=1)


def wants_gpu(settings: RaySection) -> bool:
    """Whether workers that compute with the network are to ask for a GPU each."""
    return settings.gpu == "yes" or (settings.gpu == "auto" and bool(ray.cluster_resources().get("GPU", 0)))
