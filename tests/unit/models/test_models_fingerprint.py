"""The fingerprint of an encoder's files beside that of the network that was written."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from rayjobs.errors import CheckpointError
from rayjobs.models.checkpoint import fingerprint, from_files, to_files
from rayjobs.models.encoder import build
from rayjobs.models.fingerprint import fingerprint_of
from rayjobs.models.spec import ModelSpec

SPEC = ModelSpec(
    backbone="resnet10t", dim=4, bands=("red", "green", "blue"), dtype="uint8", mean=(99.0,) * 3, std=(50.0,) * 3,
    tile_size=8, input_size=32, resolution_m=10.0,
)  # fmt: skip


def test_it_is_that_of_the_network():
    module = build(SPEC, seed=3)
    files = to_files(module, SPEC)
    found = fingerprint_of(ModelSpec.from_json(files["model.json"]), files["model.safetensors"])
    assert found == fingerprint(SPEC, module.state_dict()) == from_files(files["model.json"], files["model.safetensors"]).fingerprint


def test_one_weight_that_differs_changes_it():
    module = build(SPEC, seed=3)
    before = fingerprint_of(SPEC, to_files(module, SPEC)["model.safetensors"])
    with torch.no_grad():
        module.projection.bias[0] += 1e-6
    assert fingerprint_of(SPEC, to_files(module, SPEC)["model.safetensors"]) != before


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\xff" * 64])
def test_a_file_that_is_none(data):
    with pytest.raises(CheckpointError, match="cut off or altered"):
        fingerprint_of(SPEC, data)


@pytest.mark.parametrize("module", ["rayjobs.models.fingerprint", "rayjobs.serve.app"])
def test_no_torch_is_loaded(module):
    code = f"import sys, warnings; warnings.simplefilter('ignore'); import {module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
