"""A registered model in place of the run's checkpoint, through MLflow's own registry."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from rayjobs.config import build
from rayjobs.embed.encoder import check_fits, chosen_encoder
from rayjobs.errors import CheckpointError, ConfigError, FingerprintError
from rayjobs.experiment import Experiment
from rayjobs.models import encoder
from rayjobs.models.checkpoint import from_files, to_files
from rayjobs.models.spec import ModelSpec
from rayjobs.tracking import Model, tracked, tracking_uri
from rayjobs.train.logged import mlflow_model

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow uses what SQLAlchemy has deprecated, and warns of what it cannot pin

SPEC = ModelSpec(
    backbone="test_resnet", dim=8, bands=("red", "nir"), dtype="uint16", mean=(90.0, 80.0), std=(20.0, 30.0), tile_size=16,
    input_size=32, resolution_m=10.0,
)  # fmt: skip


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    workspace = {"uri": str(tmp_path / "workspace"), "encoder": "models:/places@champion"}
    return build(Experiment, {"name": "small", "workspace": workspace, "rasters": {"sources": [{"kind": "images", "root": "x"}]}})


@pytest.fixture
def files():
    return to_files(encoder.build(SPEC, 0), SPEC)


def register(experiment, files, fingerprint):
    uri = experiment.open_workspace().store.uri
    with tracked(experiment.tracking, workspace=uri, verb="train", run="small", parameters={}, say=pytest.fail) as tracker:
        tracker.model(lambda: mlflow_model(files), Model(name="places", fingerprint=fingerprint, alias="champion"))
    return tracking_uri(experiment.tracking, uri), tracker.run_id


def test_the_champion_is_the_encoder_and_mlflow_loads_it_too(experiment, files):
    wanted = from_files(files["model.json"], files["model.safetensors"])
    uri, _ = register(experiment, files, wanted.fingerprint)
    found = chosen_encoder(experiment)
    assert found.fingerprint == wanted.fingerprint
    assert found.words == f"models:/places@champion, version 1, encoder {wanted.fingerprint[:12]}"
    assert found.read() == {"model_json": files["model.json"], "tensors": files["model.safetensors"]}
    pixels = np.random.default_rng(0).integers(0, 200, (3, 2, 16, 16)).astype(np.uint16)
    mlflow.set_tracking_uri(uri)
    loaded = mlflow.pyfunc.load_model("models:/places@champion")
    with torch.inference_mode():
        expected = wanted.module(torch.from_numpy(pixels.astype(np.int32)), torch.ones((3, 16, 16), dtype=torch.bool)).numpy()
    np.testing.assert_allclose(loaded.predict(pixels), expected, atol=1e-5)
    with pytest.raises(mlflow.MlflowException, match="shape"):
        loaded.predict(pixels[:, :1])


def test_a_model_that_is_not_what_was_registered_is_refused(experiment, files):
    register(experiment, files, "0" * 64)
    with pytest.raises(FingerprintError, match="they were altered"):
        chosen_encoder(experiment).read()


def test_a_damaged_model_is_refused(experiment, files):
    whole = from_files(files["model.json"], files["model.safetensors"]).fingerprint
    _, run_id = register(experiment, files, whole)
    folder = experiment.open_workspace().store.uri.removeprefix("file:")
    [path] = Path(folder, "mlflow", run_id).rglob("model.safetensors")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="cut off or altered"):
        chosen_encoder(experiment).read()


@pytest.mark.parametrize("other", [{"bands": ["nir", "red"]}, {"bands": ["red"]}, {"dtype": "uint8"}])
def test_a_set_of_other_pixels_is_refused(experiment, other):
    draft = experiment.open_workspace().set.draft("s1")
    source = draft.publish({"parents": {}, "counts": {}, "bands": ["red", "nir"], "dtype": "uint16", **other})
    with pytest.raises(ConfigError, match="the encoder takes uint16 of red, nir"):
        check_fits(SPEC, source)
