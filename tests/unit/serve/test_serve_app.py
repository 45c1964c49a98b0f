"""What the application is built from, and what a replica does with it; nothing here starts Ray."""

from __future__ import annotations

import asyncio
import inspect
import json

import httpx
import pydantic
import pytest

from rayjobs.config import build
from rayjobs.errors import ConfigError, NotFoundError
from rayjobs.experiment import Experiment
from rayjobs.models import encoder
from rayjobs.models.checkpoint import to_files
from rayjobs.models.spec import ModelSpec
from rayjobs.serve import app, job, watch
from rayjobs.serve.section import ServeSection, ServiceSection
from rayjobs.serve.shards import names_of
from rayjobs.storage import Artefact, open_store

SPEC = ModelSpec(
    backbone="resnet10t", dim=4, bands=("red", "green", "blue"), dtype="uint8", mean=(99.0,) * 3, std=(50.0,) * 3,
    tile_size=8, input_size=32, resolution_m=10.0,
)  # fmt: skip


@pytest.fixture
def store(tmp_path):
    return open_store(f"file:{tmp_path}")


def publish(store, version, *, seed=0):
    draft = Artefact(store, "indexes", "places").draft(version)
    for name, data in to_files(encoder.build(SPEC, seed=seed), SPEC).items():
        draft.write(f"encoder/{name}", data)
    return draft.publish({"parents": {}, "counts": {}})


def settings_of(store, **more):
    return app.AppSettings(workspace=store.uri, index="places", **more)


def bound(application):
    """The bound deployments by name."""
    ingress = application._bound_deployment
    _, encoder, watcher, shards = ingress.init_args
    return {part.name: part for part in (ingress, *(part._bound_deployment for part in (encoder, watcher, *shards)))}


def test_all_processes_get_one_index_version_however_late_they_start(store):
    publish(store, "v1", seed=1)
    parts = bound(app.build_app(settings_of(store)))
    publish(store, "v2", seed=2)
    assert parts.keys() == {"Ingress", "Encoder", "Watcher"}
    assert all(part.user_config == {"index_version": "v1", "last_error": None} for part in parts.values())
    assert parts["Ingress"].init_args[0] == parts["Encoder"].init_args[0] == parts["Watcher"].init_args[0]


def test_the_names_that_the_watcher_tells_are_those_of_the_deployments(store):
    publish(store, "v1")
    for shards in (1, 3):
        settings = settings_of(store, service=ServiceSection(shards=shards))
        assert {*watch.FOLLOWERS, *names_of(shards)} == bound(app.build_app(settings)).keys()


class Loaded:
    def __init__(self, settings, version, _):
        self.version, self.max_limit, self.spec = settings.at(version).version, settings.service.max_limit, SPEC


@pytest.fixture
def ingress(store, monkeypatch):
    monkeypatch.setattr(app, "open_answers", Loaded)
    service = ServiceSection(max_limit=7, max_upload_megapixels=0.5, max_decoded_mb=2)
    return app.Ingress(settings_of(store, index_version="v1", service=service), None, None)


def test_an_ingress_takes_up_what_it_is_told(store, ingress):
    publish(store, "v1", seed=1)
    publish(store, "v2", seed=2)
    asyncio.run(ingress.reconfigure({"index_version": "v1"}))
    assert (ingress.answers.version, ingress.answers.max_limit, ingress.versions) == ("v1", 7, ["v1"])
    limits = ingress.uploads_for(ingress.answers)
    assert (limits.modalities, limits.dtype, limits.max_pixels, limits.max_bytes) == ((SPEC.bands,), SPEC.dtype, 500_000, 2 * 2**20)
    asyncio.run(ingress.reconfigure({"index_version": "v2"}))
    assert ingress.versions == ["v2", "v1"]


def test_an_ingress_keeps_what_it_has_where_the_next_is_not_there(store, ingress):
    publish(store, "v1")
    asyncio.run(ingress.reconfigure({"index_version": "v1"}))
    asyncio.run(ingress.reconfigure({"index_version": "v9"}))
    assert ingress.answers.version == "v1"
    assert ingress.last_error.startswith("refused v9: ")


def test_an_ingress_without_any_index_does_not_start(store, ingress):
    with pytest.raises(NotFoundError):
        asyncio.run(ingress.reconfigure({"index_version": "v1"}))


def test_an_index_version_that_is_gone_is_said_when_the_application_is_built(store):
    with pytest.raises(NotFoundError, match="rayjobs index"):
        app.build_app(settings_of(store))
    publish(store, "v1")
    with pytest.raises(NotFoundError, match="v9"):
        app.build_app(settings_of(store, index_version="v9"))


def test_the_section_reaches_the_deployments(store):
    publish(store, "v1")
    service = ServeSection(replicas=3, encoders=2, max_ongoing_requests=9, max_queued_requests=5, retry_after_s=2, port=9000)
    parts = bound(app.build_app(settings_of(store, service=service)))
    for name, count in (("Ingress", 3), ("Encoder", 2)):
        config = parts[name]._deployment_config
        assert (config.num_replicas, config.max_ongoing_requests, config.max_queued_requests) == (count, 9, 5)
        assert (config.backpressure_config.status_code, config.backpressure_config.retry_after_s) == (503, 2)


def test_each_shard_is_a_deployment_that_says_how_much_memory_it_needs(store):
    publish(store, "v1")
    service = ServiceSection(shards=3, searchers=2, shard_memory_mb=100)
    parts = bound(app.build_app(settings_of(store, service=service)))
    assert parts.keys() == {"Ingress", "Encoder", "Watcher", "Shard0", "Shard1", "Shard2"}
    shard = parts["Shard2"]
    assert (shard.init_args[1], shard.num_replicas, shard.ray_actor_options["memory"]) == (2, 2, 100 * 2**20)


def test_numbers_of_processes_may_follow_the_load(store):
    publish(store, "v1")
    parts = bound(app.build_app(settings_of(store, service=ServiceSection(replicas=2, max_replicas=5, target_ongoing_requests=3))))
    scaling = parts["Ingress"]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 3)
    assert parts["Encoder"]._deployment_config.autoscaling_config is None


def test_settings_have_no_key_or_default_of_the_section_for_themselves():
    assert not app.AppSettings.model_fields.keys() & ServeSection.__dataclass_fields__.keys()
    assert app.AppSettings(workspace="w", index="i").service == ServiceSection()


def test_settings_survive_the_way_through_a_serve_yaml():
    settings = app.AppSettings(workspace="w", index="i", service=ServeSection(replicas=3, cors_origins=("https://a.example",), port=9000))
    again = app.AppSettings.model_validate(json.loads(json.dumps(settings.model_dump(mode="json"))))
    assert (again.workspace, again.service.replicas, again.service.cors_origins) == ("w", 3, ("https://a.example",))
    assert not hasattr(again.service, "port")


def test_a_misspelt_key_of_a_serve_yaml_is_refused():
    with pytest.raises(pydantic.ValidationError, match="max_uplaod_mb"):
        app.AppSettings.model_validate({"workspace": "w", "index": "i", "service": {"max_uplaod_mb": 1}})
    with pytest.raises(pydantic.ValidationError, match="port"):
        app.AppSettings.model_validate({"workspace": "w", "index": "i", "service": {"port": 9000}})


def test_ray_serve_can_read_the_type_of_the_builder_s_argument():
    assert inspect.signature(app.build_app).parameters["settings"].annotation is app.AppSettings


def test_a_replica_without_the_required_token_refuses_to_start(monkeypatch):
    monkeypatch.delenv("RAYJOBS_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="RAYJOBS_TOKEN"):
        app.api_of(app.AppSettings(workspace="w", index="i", token_required=True))


@pytest.mark.parametrize("required", [True, False])
def test_a_replica_with_a_token_asks_for_it(monkeypatch, required):
    monkeypatch.setenv("RAYJOBS_TOKEN", "s3cret")
    interface = app.api_of(app.AppSettings(workspace="w", index="i", token_required=required))

    async def asked(headers):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(interface), base_url="http://service") as client:
            return (await client.get("/docs", headers=headers)).status_code

    assert asyncio.run(asked({})) == 401
    assert asyncio.run(asked({"authorization": "Bearer s3cret"})) == 200


@pytest.fixture
def experiment():
    raw = {"name": "places", "rasters": {"sources": [{"kind": "files", "uris": ["a.tif"]}]}, "serve": {"max_limit": 7}}
    return build(Experiment, raw)


@pytest.mark.parametrize(("token", "required"), [("s3cret", True), (None, False)])
def test_the_driver_says_version_and_whether_a_token_is_required_but_not_which(store, experiment, monkeypatch, token, required):
    version = publish(store, "v1")
    monkeypatch.delenv("RAYJOBS_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("RAYJOBS_TOKEN", token)
    settings = job._settings(experiment, version)
    assert (settings.index, settings.index_version, settings.token_required) == ("places", "v1", required)
    assert settings.service is experiment.serve
    assert "s3cret" not in settings.model_dump_json(warnings=False)


def test_a_driver_with_an_empty_token_starts_nothing(store, experiment, monkeypatch):
    monkeypatch.setenv("RAYJOBS_TOKEN", "")
    with pytest.raises(ConfigError, match="empty"):
        job._settings(experiment, publish(store, "v1"))
