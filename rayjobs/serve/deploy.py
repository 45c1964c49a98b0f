"""One application on a cluster's Ray Serve: put up where it disturbs nobody, and taken away with nothing else."""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
import ray.serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from rayjobs.errors import ServiceError
from rayjobs.serve.declared import Application, declare, running_http_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ray.serve.schema import ApplicationStatusOverview

_APPLICATION = "rayjobs"
"""What the names of our applications begin with. Each has an end of its own, so that Ray Serve itself refuses two of them at one address
instead of putting one in the other's place, and no process can take away another's."""

_BUILDER = "rayjobs.serve.app:build_app"
_STARTING = {"NOT_STARTED", "DEPLOYING"}
_POLL_S = 0.2

_LOG = logging.getLogger(__name__)


@contextmanager
def deployed(args: Mapping[str, Any], options: Mapping[str, Any], *, say: Callable[[str], None] = _LOG.warning) -> Iterator[str]:
    """Run the application at `/` for the length of the block, under the name that is yielded.

    At the end the application goes, and Ray Serve too where this process started it and nothing else runs there.

    Args:
        args: `AppSettings` as JSON.
        options: of `ray.serve.start`, `http_options` among them, which cannot be changed while Ray Serve runs.
        say: told what the start waits for, such as room on the cluster.

    Raises:
        ServiceError: Ray Serve runs already with one of our applications or with other options, or the application does not start.
    """
    ours_to_end = not _runs_for_others(options["http_options"])
    name = f"{_APPLICATION}-{secrets.token_hex(4)}"
    try:
        _start(name, args, options, say)
        yield name
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
    running = running_http_options(tuple(wanted))
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


def _start(name: str, args: Mapping[str, Any], options: Mapping[str, Any], say: Callable[[str], None]) -> None:
    try:
        ray.serve.start(**options)
        declare(_application(name, args))
        _wait(name, say)
    except (RayServeException, RayError, RuntimeError, TimeoutError) as error:  # the port is taken; a replica or a proxy does not start
        said = [str(error) or repr(error), *_complaints(name)]
        _LOG.exception("application %s does not start: %s", name, "\n".join(said))
        raise ServiceError(f"the service does not start: {said[-1].strip().splitlines()[-1]}") from error


def _application(name: str, args: Mapping[str, Any]) -> Application:
    environment = {key: value for key, value in ray.get_runtime_context().runtime_env.items() if key in {"working_dir", "env_vars"}}
    return {"name": name, "route_prefix": "/", "import_path": _BUILDER, "args": dict(args), "runtime_env": environment}


def _wait(name: str, say: Callable[[str], None]) -> None:
    """Wait until the application answers, and say once of each deployment what it lacks. Raises `RuntimeError` where it will not."""
    told: set[str] = set()
    while (application := _status(name)) is None or application.status.value in _STARTING:
        for deployment, status in application.deployments.items() if application else ():
            if status.message and deployment not in told:
                say(status.message)
                told.add(deployment)
        time.sleep(_POLL_S)
    if application.status.value != "RUNNING":
        raise RuntimeError(application.message)


def _status(name: str) -> ApplicationStatusOverview | None:
    return ray.serve.status().applications.get(name)


def _complaints(name: str) -> list[str]:
    """Return what an application's deployments say of their failure, which Ray Serve leaves out of its own error."""
    application = _status(name)
    deployments = application.deployments.values() if application else ()
    return [deployment.message for deployment in deployments if deployment.status.value == "DEPLOY_FAILED" and deployment.message.strip()]
