"""One application on a cluster's Ray Serve: put up where it disturbs nobody, and taken away with nothing else."""

from __future__ import annotations

import logging
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

import ray.serve
from ray.serve.context import _get_global_client  # status() tells no HTTP options, and no public function does
from ray.serve.exceptions import RayServeException

from rayjobs.errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_APPLICATION = "rayjobs"
"""What the names of our applications begin with. Each has an end of its own, so that Ray Serve itself refuses two of them at one address
instead of putting one in the other's place, and no process can take away another's."""

_LOG = logging.getLogger(__name__)


@contextmanager
def deployed(app: ray.serve.Application, http_options: Mapping[str, object]) -> Iterator[None]:
    """Run the application at `/` for the length of the block.

    At the end the application goes, and Ray Serve too where this process started it and nothing else runs there.

    Args:
        app: what `build_app` returns.
        http_options: `host`, `port` and `request_timeout_s` of Ray Serve, which cannot be changed while it runs.

    Raises:
        ServiceError: Ray Serve runs already with one of our applications or with other options, or the application does not start.
    """
    ours_to_end = not _runs_for_others(http_options)
    name = f"{_APPLICATION}-{secrets.token_hex(4)}"
    try:
        _start(app, name, http_options)
        yield
    finally:
        if ours_to_end and not set(ray.serve.status().applications) - {name}:
            ray.serve.shutdown()
        else:
            ray.serve.delete(name)


def _runs_for_others(wanted: Mapping[str, object]) -> bool:
    """Return whether Ray Serve runs on the cluster already, in a way that we can join.

    Raises:
        ServiceError: it runs, and we cannot join it.
    """
    running = _running_http_options(tuple(wanted))
    if running is None:
        return False
    for name, application in ray.serve.status().applications.items():
        if name.split("-")[0] == _APPLICATION:
            raise ServiceError(
                f"this cluster serves already: application {name} is {application.status.value}; end the `rayjobs serve` that started it "
                "(`serve shutdown`, if that is gone), or use another cluster"
            )
    different = [f"{option} {running[option]} (wanted: {value})" for option, value in wanted.items() if running[option] != value]
    if different:
        raise ServiceError(
            f"Ray Serve runs on this cluster already, with {', '.join(different)}, which it cannot change while it runs; "
            "give serve.host, serve.port and serve.request_timeout_s the same values, end it with `serve shutdown`, or use another cluster"
        )
    return True


def _running_http_options(names: tuple[str, ...]) -> dict[str, object] | None:
    """Return options of the Ray Serve that runs on the cluster, or None where none runs."""
    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else {name: getattr(client.http_config, name) for name in names}


def _start(app: ray.serve.Application, name: str, http_options: Mapping[str, object]) -> None:
    try:
        ray.serve.start(http_options=dict(http_options))
        ray.serve.run(app, name=name, route_prefix="/")
    except (RayServeException, RuntimeError, TimeoutError) as error:  # the port or the path is taken; a replica or a proxy does not start
        said = [str(error) or repr(error), *_complaints(name)]
        _LOG.exception("application %s does not start: %s", name, "\n".join(said))
        raise ServiceError(f"the service does not start: {said[-1].strip().splitlines()[-1]}") from error


def _complaints(name: str) -> list[str]:
    """Return what an application's deployments say of their failure, which Ray Serve leaves out of its own error."""
    application = ray.serve.status().applications.get(name)
    deployments = application.deployments.values() if application else ()
    return [deployment.message for deployment in deployments if deployment.status.value == "DEPLOY_FAILED" and deployment.message.strip()]
