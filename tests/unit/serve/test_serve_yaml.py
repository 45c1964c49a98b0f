"""The shipped Serve YAML, by Ray's own schema and by ours."""

from __future__ import annotations

from pathlib import Path

import yaml
from ray.serve.schema import ServeDeploySchema

from rayjobs.serve.app import AppSettings, build_app
from rayjobs.serve.watch import FOLLOWERS

WRITTEN = yaml.safe_load(Path(__file__).parents[3].joinpath("deploy/serve.yaml").read_text())


def test_ray_serve_takes_it():
    declared = ServeDeploySchema.model_validate(WRITTEN)
    [application] = declared.applications
    module, _, name = application.import_path.partition(":")
    assert (module, name) == (build_app.__module__, build_app.__name__)
    assert {deployment.name for deployment in application.deployments} <= set(FOLLOWERS)


def test_the_application_takes_its_arguments():
    settings = AppSettings.model_validate(WRITTEN["applications"][0]["args"])
    assert settings.token_required
    assert settings.service.max_replicas == 8


def test_what_the_watcher_tells_is_not_in_its_way():
    """A `user_config` in the file would bring an old index back at each deploy."""
    assert not [deployment for deployment in WRITTEN["applications"][0]["deployments"] if "user_config" in deployment]
