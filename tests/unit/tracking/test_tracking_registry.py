from __future__ import annotations

import pytest
from mlflow import MlflowClient

from rayjobs.errors import ConfigError, NotFoundError
from rayjobs.tracking import Model, TrackingSection, registered, tracked

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow uses what SQLAlchemy has deprecated


@pytest.fixture
def settings(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return TrackingSection(uri=f"sqlite:///{tmp_path}/mlflow.db")


def learned(settings, tmp_path, run, fingerprint, alias=None, *, times=1):
    with tracked(settings, workspace=f"file:{tmp_path}", verb="train", run=run, parameters={}, say=pytest.fail) as tracker:
        for _ in range(times):
            tracker.model(lambda: {"data/encoder/model.json": run.encode()}, Model(name="places", fingerprint=fingerprint, alias=alias))


def test_a_model_is_found_by_alias_and_by_version(settings, tmp_path):
    learned(settings, tmp_path, "one", "aaa", "champion")
    learned(settings, tmp_path, "two", "bbb", times=2)  # told twice, registered once
    asked = {name: registered(settings, workspace=f"file:{tmp_path}", model=f"models:/places{name}") for name in ("@champion", "/1", "/2")}
    assert {name: (found.version, found.fingerprint) for name, found in asked.items()} == {
        "@champion": ("1", "aaa"),
        "/1": ("1", "aaa"),
        "/2": ("2", "bbb"),
    }
    assert asked["@champion"].read(["data/encoder/model.json"]) == {"data/encoder/model.json": b"one"}
    learned(settings, tmp_path, "three", "ccc", "champion")
    assert registered(settings, workspace=f"file:{tmp_path}", model="models:/places@champion").fingerprint == "ccc"
    assert len(MlflowClient(settings.uri).search_model_versions("name = 'places'")) == 3


def test_what_is_not_registered_is_said_with_what_to_do(settings, tmp_path):
    learned(settings, tmp_path, "one", "aaa")
    client = MlflowClient(settings.uri)
    client.create_registered_model("others")
    client.create_model_version("others", str(tmp_path))
    for model, error, words in (
        ("models:/places@champion", NotFoundError, "give a version the alias"),
        ("models:/places/7", NotFoundError, "is not to be had"),
        ("models:/unknown@champion", NotFoundError, "is not to be had"),
        ("models:/others/1", NotFoundError, "which rayjobs did not register"),
        ("places", ConfigError, "write models:/NAME@ALIAS"),
    ):
        with pytest.raises(error, match=words):
            registered(settings, workspace=f"file:{tmp_path}", model=model)


def test_files_that_are_gone_are_said(settings, tmp_path):
    learned(settings, tmp_path, "one", "aaa", "champion")
    found = registered(settings, workspace=f"file:{tmp_path}", model="models:/places@champion")
    with pytest.raises(NotFoundError, match="cannot be read from"):
        found.read(["data/encoder/none"])
