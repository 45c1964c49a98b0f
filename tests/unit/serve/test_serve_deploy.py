"""Putting the application on a cluster's Ray Serve and taking it away, with Ray Serve's public functions stood in for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray.serve
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview, ServeStatus

from rayjobs.errors import ServiceError
from rayjobs.serve import deploy

HTTP = {"host": "127.0.0.1", "port": 8000, "request_timeout_s": 30.0}
APP = object()


def application(status="RUNNING", **messages):
    deployments = {
        name: DeploymentStatusOverview(
            status=SimpleNamespace(value="DEPLOY_FAILED" if said else "HEALTHY"), status_trigger=None, replica_states={}, message=said
        )
        for name, said in messages.items()
    }
    return ApplicationStatusOverview(status=ApplicationStatus(status), message="", last_deployed_time_s=0.0, deployments=deployments)


class Cluster:
    """Ray Serve as one cluster has it."""

    def __init__(self):
        self.http, self.applications, self.failure = None, {}, None

    def client(self, *, raise_if_no_controller_running):
        assert raise_if_no_controller_running is False
        return None if self.http is None else SimpleNamespace(http_config=SimpleNamespace(**self.http))

    def start(self, *, http_options):
        self.http = self.http or dict(http_options)

    def run(self, app, *, name, route_prefix):
        assert (app, route_prefix) == (APP, "/")
        if self.failure:
            error, self.applications[name] = self.failure
            raise error
        self.applications[name] = application()

    def delete(self, name):
        self.applications.pop(name, None)

    def shutdown(self):
        self.http, self.applications = None, {}


@pytest.fixture
def cluster(monkeypatch):
    made = Cluster()
    monkeypatch.setattr(deploy, "_get_global_client", made.client)
    monkeypatch.setattr(ray.serve, "status", lambda: ServeStatus(applications=dict(made.applications)))
    for name in ("start", "run", "delete", "shutdown"):
        monkeypatch.setattr(ray.serve, name, getattr(made, name))
    return made


def test_on_a_fresh_cluster_nothing_is_left_behind(cluster):
    with deploy.deployed(APP, HTTP):
        [name] = cluster.applications
        assert name.startswith("rayjobs-")
        assert cluster.http == HTTP
    assert (cluster.http, cluster.applications) == (None, {})


def test_another_port_may_follow_on_the_same_cluster(cluster):
    with deploy.deployed(APP, HTTP):
        pass
    with deploy.deployed(APP, HTTP | {"port": 9000}):
        assert cluster.http["port"] == 9000


@pytest.mark.parametrize("name", ["rayjobs-1a2b3c4d", "rayjobs"])
def test_a_service_of_ours_is_neither_replaced_nor_ended(cluster, name):
    cluster.http, cluster.applications = dict(HTTP), {name: application()}
    before = dict(cluster.applications)
    with pytest.raises(ServiceError, match=f"application {name} is RUNNING; end the `rayjobs serve`"), deploy.deployed(APP, HTTP):
        pytest.fail("a second service came up")
    assert (cluster.http, cluster.applications) == (HTTP, before)


@pytest.mark.parametrize("other", [{"port": 9000}, {"host": "0.0.0.0"}, {"request_timeout_s": 60.0}])
def test_other_http_options_are_refused_and_left_as_they_are(cluster, other):
    cluster.http = HTTP | other
    [(option, value)] = other.items()
    with pytest.raises(ServiceError, match=f"{option} {value} \\(wanted: {HTTP[option]}\\)"), deploy.deployed(APP, HTTP):
        pytest.fail("the address was ignored")
    assert cluster.http == HTTP | other


def test_beside_others_only_ours_goes(cluster):
    cluster.http, cluster.applications = dict(HTTP), {"rayjobsish": application(), "default": application()}
    with deploy.deployed(APP, HTTP):
        assert len(cluster.applications) == 3
    assert cluster.http == HTTP
    assert cluster.applications.keys() == {"rayjobsish", "default"}


def test_what_others_put_up_meanwhile_stays(cluster):
    with deploy.deployed(APP, HTTP):
        cluster.applications["default"] = application()
    assert cluster.http == HTTP
    assert cluster.applications.keys() == {"default"}


def test_what_somebody_put_up_at_the_same_moment_stays(cluster, monkeypatch):
    taken = 'Prefix / is being used by application "rayjobs-00000000".'

    def too_late(*_, **__):
        cluster.applications["rayjobs-00000000"] = application()
        raise RayServeException(taken)

    monkeypatch.setattr(ray.serve, "run", too_late)
    with pytest.raises(ServiceError, match="Prefix / is being used"), deploy.deployed(APP, HTTP):
        pytest.fail("two services at one address")
    assert cluster.applications.keys() == {"rayjobs-00000000"}


def test_a_failure_of_the_block_passes_and_the_application_goes(cluster):
    with pytest.raises(ZeroDivisionError), deploy.deployed(APP, HTTP):
        raise ZeroDivisionError
    assert cluster.applications == {}


def test_why_a_replica_does_not_start_is_said_in_one_line(cluster, caplog):
    trace = "The deployment failed to start 3 times in a row. Error:\n  File app.py\nrayjobs.errors.ConfigError: RAYJOBS_TOKEN was set\n"
    cluster.failure = RuntimeError("Failed to update the deployments ['Ingress']."), application("DEPLOY_FAILED", Encoder="", Ingress=trace)
    with pytest.raises(ServiceError) as caught, deploy.deployed(APP, HTTP):
        pytest.fail("it came up")
    assert str(caught.value) == "the service does not start: rayjobs.errors.ConfigError: RAYJOBS_TOKEN was set"
    assert "File app.py" in caplog.text
    assert cluster.applications == {}
