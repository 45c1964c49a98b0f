"""The watcher: what it declares when another index becomes current, and what it does with a bad one."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest
import ray.serve

from rayjobs.errors import ServiceError
from rayjobs.serve import declared, watch
from rayjobs.serve.section import ServiceSection
from rayjobs.serve.settings import AppSettings
from rayjobs.storage import Artefact, open_store


@pytest.fixture
def index(tmp_path):
    return Artefact(open_store(f"file:{tmp_path}"), "indexes", "places")


class Encoder:
    """A handle of the encoder: which versions it was asked to try."""

    def __init__(self):
        self.tried, self.bad = [], {}
        self.refusal = SimpleNamespace(remote=self._refusal)

    async def _refusal(self, version):
        self.tried.append(version)
        return self.bad.get(version)


@pytest.fixture
def encoder():
    return Encoder()


@pytest.fixture
def told(monkeypatch):
    told = []
    monkeypatch.setattr(ray.serve, "get_replica_context", lambda: SimpleNamespace(app_name="rayjobs-1"))
    monkeypatch.setattr(watch, "set_user_config", lambda *arguments: told.append(arguments))
    return told


@pytest.fixture
def watcher(index, encoder):
    settings = AppSettings(workspace=index.store.uri, index="places", service=ServiceSection(watch_s=0.01))
    made = watch.Watcher(settings, encoder)
    asyncio.run(made.reconfigure({"index_version": "v1"}))
    return made


def publish(index, version):
    index.draft(version).publish({"parents": {}, "counts": {}})


def look(watcher, times=1):
    for _ in range(times):
        asyncio.run(watcher.refresh())


def test_a_new_version_is_tried_and_declared_once(index, watcher, encoder, told):
    publish(index, "v1")
    look(watcher)
    assert (encoder.tried, told) == ([], [])
    publish(index, "v2")
    look(watcher, times=2)
    assert encoder.tried == ["v2"]
    assert told == [("rayjobs-1", ("Ingress", "Encoder", "Watcher"), {"index_version": "v2", "last_error": None})]


def test_shards_have_taken_a_version_up_before_others_are_told(index, encoder, told, monkeypatch):
    service = ServiceSection(watch_s=0.01, shards=2)
    watcher = watch.Watcher(AppSettings(workspace=index.store.uri, index="places", service=service), encoder)
    answers = [False, False, True]

    def asked(*arguments):
        assert told == [arguments]
        return answers.pop(0)

    monkeypatch.setattr(watch, "_POLL_S", 0)
    monkeypatch.setattr(watch, "have_taken_up", asked)
    publish(index, "v2")
    look(watcher)
    assert answers == []
    assert [deployments for _, deployments, _ in told] == [["Shard0", "Shard1"], ("Ingress", "Encoder", "Watcher")]


def test_a_bad_version_is_not_declared_but_why_is(index, watcher, encoder, told, monkeypatch):
    encoder.bad["v2"] = "segment-00000 differs from its manifest"
    publish(index, "v2")
    look(watcher, times=3)
    assert encoder.tried == ["v2"]
    assert [config for _, _, config in told] == [
        {"index_version": "v1", "last_error": "refused v2: segment-00000 differs from its manifest"},
    ]
    monkeypatch.setattr(watch, "_AGAIN_S", 0.0)
    look(watcher)
    assert (encoder.tried, len(told)) == (["v2", "v2"], 1), "tried again, and nothing new to tell"
    publish(index, "v3")
    look(watcher)
    assert told[-1][2] == {"index_version": "v3", "last_error": None}


def test_an_index_that_was_rolled_back_is_followed(index, watcher, told):
    publish(index, "v1")
    publish(index, "v2")
    look(watcher)
    index.go_back("v1")
    look(watcher)
    assert [config["index_version"] for _, _, config in told] == ["v2", "v1"]


def test_a_bad_version_that_is_taken_back_is_spoken_of_no_more(index, watcher, encoder, told):
    publish(index, "v1")
    encoder.bad["v2"] = "too short"
    publish(index, "v2")
    look(watcher)
    index.go_back("v1")
    look(watcher, times=2)
    assert [config for _, _, config in told] == [
        {"index_version": "v1", "last_error": "refused v2: too short"}, {"index_version": "v1", "last_error": None},
    ]  # fmt: skip
    index.go_back("v2")
    look(watcher)
    assert told[-1][2] == {"index_version": "v1", "last_error": "refused v2: too short"}, "and again as soon as it is current again"


def test_nothing_published_is_no_reason_to_do_anything(watcher, encoder, told):
    look(watcher)
    assert (encoder.tried, told) == ([], [])


def test_watching_survives_what_fails(index, watcher, told, monkeypatch):
    publish(index, "v2")
    declared_at_last = threading.Event()
    monkeypatch.setattr(watch, "set_user_config", lambda _, __, config: (told.append(config), declared_at_last.set()))
    failures = [OSError("the bucket does not answer")]
    leads_to = Artefact.leads_to

    def failing(self):
        if failures:
            raise failures.pop()
        return leads_to(self)

    monkeypatch.setattr(Artefact, "leads_to", failing)

    async def watched():
        await watcher.check_health()
        first = watcher._watching
        await watcher.check_health()
        assert watcher._watching is first, "one of them watches"
        await asyncio.to_thread(declared_at_last.wait, 10)
        first.cancel()

    asyncio.run(watched())
    assert not failures
    assert told == [{"index_version": "v2", "last_error": None}]


def test_a_service_may_keep_its_version(index):
    watcher = watch.Watcher(AppSettings(workspace=index.store.uri, index="places", service=ServiceSection(watch_s=0)), None)
    asyncio.run(watcher.check_health())
    assert watcher._watching is None


class Client:
    """Ray Serve's client on a cluster with declared applications."""

    def __init__(self, **applications):
        self.details = {name: {"status": status, "deployed_app_config": config} for name, (status, config) in applications.items()}
        self.deployed = None
        self.asked, self.meanwhile = 0, {}

    def get_serve_details(self):
        self.asked += 1
        self.meanwhile.get(self.asked, lambda: None)()
        return {"applications": self.details}

    def deploy_apps(self, schema):
        self.deployed = {application.name: application.model_dump(exclude_unset=True) for application in schema.applications}
        kept = {name: details for name, details in self.details.items() if details["deployed_app_config"] is None}
        self.details = kept | {name: {"status": "RUNNING", "deployed_app_config": config} for name, config in self.deployed.items()}


def config_of(name, **more):
    return {"name": name, "route_prefix": f"/{name}", "import_path": "a.b:c", **more}


@pytest.fixture
def cluster(monkeypatch):
    ours = config_of("ours", args={"x": 1}, deployments=[{"name": "Ingress", "num_replicas": 3}, {"name": "Other"}])
    client = Client(
        ours=("RUNNING", ours), other=("RUNNING", config_of("other")), gone=("DELETING", config_of("gone")), run=("RUNNING", None)
    )
    monkeypatch.setattr(declared, "_get_global_client", lambda: client)
    return client


def test_a_user_config_changes_nothing_else(cluster):
    declared.set_user_config("ours", ("Ingress", "Encoder"), {"index_version": "v2"})
    assert cluster.deployed.keys() == {"ours", "other"}, "neither what is going nor what was not declared is declared"
    assert cluster.deployed["other"] == config_of("other")
    assert cluster.deployed["ours"] == config_of(
        "ours",
        args={"x": 1},
        deployments=[
            {"name": "Other"},
            {"name": "Ingress", "num_replicas": 3, "user_config": {"index_version": "v2"}},
            {"name": "Encoder", "user_config": {"index_version": "v2"}},
        ],
    )


def test_an_application_that_was_not_declared_cannot_be_changed(cluster):
    with pytest.raises(ServiceError, match="serve run"):
        declared.set_user_config("run", ("Ingress",), {"index_version": "v2"})
    assert cluster.deployed is None


def test_declaring_leaves_others(cluster):
    declared.declare(config_of("new"))
    assert cluster.deployed.keys() == {"ours", "other", "new"}


@pytest.mark.parametrize(("when", "change"), [(2, "changed"), (2, "gone"), (3, "changed"), (3, "new")])
def test_what_others_declare_meanwhile_is_told(cluster, caplog, when, change):
    def another():
        if change == "gone":
            del cluster.details["other"]
        else:
            name = "other" if change == "changed" else "new"
            cluster.details = cluster.details | {name: {"status": "RUNNING", "deployed_app_config": config_of(name, args={"y": 2})}}

    cluster.meanwhile[when] = another
    declared.set_user_config("ours", ("Ingress",), {"index_version": "v2"})
    [line] = caplog.records
    assert line.levelname == "ERROR"
    assert f"somebody else changed {'new' if change == 'new' else 'other'};" in line.getMessage()
    if when == 2:
        assert ("other" in cluster.deployed) == (change != "gone"), "what was read last is what is declared"


def test_where_nobody_else_declares_nothing_is_told(cluster, caplog):
    declared.set_user_config("ours", ("Ingress",), {"index_version": "v2"})
    assert not caplog.records
