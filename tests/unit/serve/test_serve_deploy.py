"""Putting the application on a cluster's Ray Serve and taking it away, with Ray Serve's public functions stood in for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray
import ray.serve
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview, ServeStatus

from rayjobs.errors import ServiceError
from rayjobs.serve import deploy

HTTP = {"host": "127.0.0.1", "port": 8000, "request_timeout_s": 30.0}
ARGS = {"workspace": "file:/w", "index": "places"}


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

    def running_http_options(self, names):
        return None if self.http is None else {name: self.http[name] for name in names}

    def start(self, *, http_options):
        self.http = self.http or dict(http_options)

    def declare(self, wanted):
        assert (wanted["args"], wanted["route_prefix"], wanted["import_path"]) == (ARGS, "/", "rayjobs.serve.app:build_app")
        self.applications[wanted["name"]] = self.failure or application()

    def delete(self, name):
        self.applications.pop(name, None)

    def shutdown(self):
        self.http, self.applications = None, {}


@pytest.fixture
def cluster(monkeypatch):
    made = Cluster()
    monkeypatch.setattr(deploy, "running_http_options", made.running_http_options)
    monkeypatch.setattr(deploy, "declare", made.declare)
    monkeypatch.setattr(ray.serve, "status", lambda: ServeStatus(applications=dict(made.applications)))
    environment = {"working_dir": "gcs://x.zip", "env_vars": {"A": "b"}, "config": {}}
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(runtime_env=environment))
    for name in ("start", "delete", "shutdown"):
        monkeypatch.setattr(ray.serve, name, getattr(made, name))
    return made


def test_on_a_fresh_cluster_nothing_is_left_behind(cluster):
    with deploy.deployed(ARGS, {"http_options": HTTP}):
        [name] = cluster.applications
        assert name.startswith("rayjobs-")
        assert cluster.http == HTTP
    assert (cluster.http, cluster.applications) == (None, {})


def test_another_port_may_follow_on_the_same_cluster(cluster):
    with deploy.deployed(ARGS, {"http_options": HTTP}):
        pass
    with deploy.deployed(ARGS, {"http_options": HTTP | {"port": 9000}}):
        assert cluster.http["port"] == 9000


@pytest.mark.parametrize("name", ["rayjobs-1a2b3c4d", "rayjobs"])
def test_a_service_of_ours_is_neither_replaced_nor_ended(cluster, name):
    cluster.http, cluster.applications = dict(HTTP), {name: application()}
    before = dict(cluster.applications)
    with (
        pytest.raises(ServiceError, match=f"application {name} is RUNNING; end the `rayjobs serve`"),
        deploy.deployed(ARGS, {"http_options": HTTP}),
    ):
        pytest.fail("a second service came up")
    assert (cluster.http, cluster.applications) == (HTTP, before)


@pytest.mark.parametrize("other", [{"port": 9000}, {"host": "0.0.0.0"}, {"request_timeout_s": 60.0}])
def test_other_http_options_are_refused_and_left_as_they_are(cluster, other):
    cluster.http = HTTP | other
    [(option, value)] = other.items()
    with pytest.raises(ServiceError, match=f"{option} {value} \\(wanted: {HTTP[option]}\\)"), deploy.deployed(ARGS, {"http_options": HTTP}):
        pytest.fail("the address was ignored")
    assert cluster.http == HTTP | other


def test_beside_others_only_ours_goes(cluster):
    cluster.http, cluster.applications = dict(HTTP), {"rayjobsish": application(), "default": application()}
    with deploy.deployed(ARGS, {"http_options": HTTP}):
        assert len(cluster.applications) == 3
    assert cluster.http == HTTP
    assert cluster.applications.keys() == {"rayjobsish", "default"}


def test_what_others_put_up_meanwhile_stays(cluster):
    with deploy.deployed(ARGS, {"http_options": HTTP}):
        cluster.applications["default"] = application()
    assert cluster.http == HTTP
    assert cluster.applications.keys() == {"default"}


def test_what_somebody_put_up_at_the_same_moment_stays(cluster, monkeypatch):
    taken = 'Prefix / is being used by application "rayjobs-00000000".'

    def too_late(_):
        cluster.applications["rayjobs-00000000"] = application()
        raise RayServeException(taken)

    monkeypatch.setattr(deploy, "declare", too_late)
    with pytest.raises(ServiceError, match="Prefix / is being used"), deploy.deployed(ARGS, {"http_options": HTTP}):
        pytest.fail("two services at one address")
    assert cluster.applications.keys() == {"rayjobs-00000000"}


def test_a_failure_of_the_block_passes_and_the_application_goes(cluster):
    with pytest.raises(ZeroDivisionError), deploy.deployed(ARGS, {"http_options": HTTP}):
        raise ZeroDivisionError
    assert cluster.applications == {}


def test_why_a_replica_does_not_start_is_said_in_one_line(cluster, caplog):
    trace = "The deployment failed to start 3 times in a row. Error:\n  File app.py\nrayjobs.errors.ConfigError: RAYJOBS_TOKEN was set\n"
    cluster.failure = application("DEPLOY_FAILED", Encoder="", Ingress=trace)
    with pytest.raises(ServiceError) as caught, deploy.deployed(ARGS, {"http_options": HTTP}):
        pytest.fail("it came up")
    assert str(caught.value) == "the service does not start: rayjobs.errors.ConfigError: RAYJOBS_TOKEN was set"
    assert "File app.py" in caplog.text
    assert cluster.applications == {}


def test_why_the_application_cannot_be_built_is_said_in_one_line(cluster):
    message = "Deploying app 'rayjobs' failed with exception:\nTraceback\nrayjobs.errors.NotFoundError: there is no index\n"
    cluster.failure = ApplicationStatusOverview(
        status=ApplicationStatus("DEPLOY_FAILED"), message=message, last_deployed_time_s=0.0, deployments={}
    )
    with (
        pytest.raises(ServiceError, match=r"the service does not start: rayjobs\.errors\.NotFoundError: there is no index$"),
        deploy.deployed(ARGS, {"http_options": HTTP}),
    ):
        pytest.fail("it came up")


def test_what_the_start_waits_for_is_said_once(cluster, monkeypatch):
    lacking, told = "Deployment 'Shard1' has 1 replicas that have taken more than 30s to be scheduled.", []
    states = [application("DEPLOYING", Ingress="", Shard1=said) for said in ("", lacking, lacking)] + [application()]
    monkeypatch.setattr(deploy, "_POLL_S", 0)
    monkeypatch.setattr(deploy, "_status", lambda _: states.pop(0))
    with deploy.deployed(ARGS, {"http_options": HTTP}, say=told.append):
        assert told == [lacking]


def test_what_the_driver_ships_goes_to_the_processes_too(cluster, monkeypatch):
    told = []
    monkeypatch.setattr(deploy, "declare", lambda wanted: (told.append(wanted), cluster.declare(wanted)))
    with deploy.deployed(ARGS, {"http_options": HTTP}) as name:
        assert told[0]["name"] == name
    assert told[0]["runtime_env"] == {"working_dir": "gcs://x.zip", "env_vars": {"A": "b"}}
