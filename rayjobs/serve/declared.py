"""The applications that are declared to a cluster's Ray Serve: read, added to, and given another `user_config`.

Declared applications, unlike those of `ray.serve.run`, have a changed `user_config` handed to their running processes; an application
of `ray.serve.run` has all its processes started anew. Declaring goes through Ray Serve's client: the same call that its REST interface
makes, which would need the cluster's dashboard.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ray.serve.context import _get_global_client  # no public function declares, or tells HTTP options
from ray.serve.schema import ServeDeploySchema

from rayjobs.errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

Application = dict[str, Any]
"""An entry of `applications` in a Serve YAML."""

_GOING, _SETTLED = "DELETING", "HEALTHY"

_LOG = logging.getLogger(__name__)


def declared() -> dict[str, Application]:
    """Return the declared applications by name, those that are being deleted left out."""
    known = _client().get_serve_details()["applications"]
    return {
        name: details["deployed_app_config"]
        for name, details in known.items()
        if details.get("deployed_app_config") and details["status"] != _GOING
    }


def declare(application: Application, *, known: Mapping[str, Application] | None = None) -> None:
    """Add an application, or change it; other declared applications stay as they are.

    Ray Serve takes all applications at once or none, without a condition: what somebody else declares meanwhile may be lost, and is logged.

    Args:
        application: what to declare.
        known: the declared applications, where they were read before; what has changed since is logged.
    """
    name, before = application["name"], declared()
    if known is not None:
        _tell_changes(name, known, before)
    wanted = before | {name: application}
    _client().deploy_apps(ServeDeploySchema.model_validate({"applications": list(wanted.values())}))
    _tell_changes(name, _but(name, before), _but(name, declared()))


def _but(name: str, applications: Mapping[str, Application]) -> dict[str, Application]:
    return {other: application for other, application in applications.items() if other != name}


def _tell_changes(name: str, before: Mapping[str, Application], after: Mapping[str, Application]) -> None:
    """Log which applications somebody else changed while one was declared."""
    changed = sorted(other for other in before.keys() | after.keys() if before.get(other) != after.get(other))
    if changed:
        _LOG.error(
            "while application %s was declared, somebody else changed %s; Ray Serve takes all declared applications at once, so that one "
            "of the changes may be lost: look at `serve config`, and declare them again where they are not as they should be",
            name,
            ", ".join(changed),
        )


def set_user_config(name: str, deployments: Collection[str], user_config: Mapping[str, Any]) -> None:
    """Hand the running processes of some deployments another `user_config`.

    Raises:
        ServiceError: the application was not declared.
    """
    known_applications = declared()
    application = known_applications.get(name)
    if application is None:
        raise ServiceError(
            f"application {name} was started by `serve run`, which Ray Serve cannot change while it runs; start it with `rayjobs serve` or "
            "`serve deploy`, so that newly published indexes are taken up"
        )
    others = [entry for entry in application.get("deployments", []) if entry["name"] not in deployments]
    known = {entry["name"]: entry for entry in application.get("deployments", [])}
    changed = [{**known.get(deployment, {"name": deployment}), "user_config": dict(user_config)} for deployment in deployments]
    declare({**application, "deployments": [*others, *changed]}, known=known_applications)


def have_taken_up(name: str, deployments: Collection[str], user_config: Mapping[str, Any]) -> bool:
    """Return whether all processes of some deployments of an application have been handed a `user_config`."""
    known = _client().get_serve_details()["applications"][name]["deployments"]
    found = [known[deployment] for deployment in deployments]
    return all(one["status"] == _SETTLED and one["deployment_config"]["user_config"] == dict(user_config) for one in found)


def running_http_options(names: Collection[str]) -> dict[str, object] | None:
    """Return options of the Ray Serve that runs on the cluster, or None where none runs."""
    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else {name: getattr(client.http_config, name) for name in names}


def _client() -> Any:
    return _get_global_client()
