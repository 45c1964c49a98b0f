from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs.errors import CheckpointError
from rayjobs.models.checkpoint import fingerprint, from_files, read_training_state, to_files, training_state_bytes
from rayjobs.models.encoder import build, standardised, statistics_spec
from rayjobs.models.spec import ModelSpec

SPEC = ModelSpec(
    backbone="resnet10t",
    dim=8,
    bands=("red", "nir"),
    dtype="uint16",
    mean=(0.1, 1234.5),
    std=(1.0, 250.0),
    tile_size=24,
    input_size=32,
    resolution_m=None,
)


@pytest.fixture(scope="module")
def module():
    return build(SPEC, seed=1).eval()


@pytest.fixture(scope="module")
def files(module):
    return to_files(module, SPEC)


def load(files, **changes):
    return from_files(model_json=changes.get("model_json", files["model.json"]), tensors=changes.get("tensors", files["model.safetensors"]))


def test_an_encoder_comes_back_as_it_went(module, files):
    loaded = load(files)
    assert loaded.spec == SPEC
    assert not loaded.module.training
    pixels = torch.randint(0, 3000, (2, 2, 24, 24), dtype=torch.int32)
    assert torch.equal(loaded.module(pixels), module(pixels))
    assert to_files(loaded.module, loaded.spec) == files


def test_statistics_come_back_as_they_went():
    plain = statistics_spec(bands=["a"], mean=[1.0], std=[2.0], tile_size=8, resolution_m=0.5, dtype="uint8")
    spec = standardised(plain, np.random.default_rng(0).normal(size=(9, 4)))
    loaded = load(to_files(build(spec), spec))
    assert loaded.spec == spec
    pixels = torch.randint(0, 255, (2, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(loaded.module(pixels), build(spec)(pixels))


def test_the_fingerprint_is_the_digest_of_json_and_tensors_in_order_of_name(module, files):
    digest = hashlib.sha256(files["model.json"])
    state = safetensors.torch.load(files["model.safetensors"])
    for name in sorted(state):
        digest.update(state[name].numpy().tobytes())
    assert fingerprint(SPEC, module.state_dict()) == load(files).fingerprint == digest.hexdigest()


def test_the_fingerprint_does_not_depend_on_the_order_of_the_state(module):
    state = module.state_dict()
    assert fingerprint(SPEC, dict(reversed(state.items()))) == fingerprint(SPEC, state)


def test_any_change_of_weight_or_spec_changes_the_fingerprint(module):
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    before = fingerprint(SPEC, state)
    state["projection.bias"][3] += 1e-6
    assert fingerprint(SPEC, state) != before
    other = ModelSpec.from_json(SPEC.to_json().replace(b"1234.5", b"1234.75"))
    assert fingerprint(other, module.state_dict()) != before


def test_the_fingerprint_of_a_fixed_state_never_changes():
    state = {"b": torch.tensor([1.0, -2.5]), "a": torch.tensor(7)}
    written = (
        b'{"backbone":"resnet10t","bands":["red","nir"],"codes":[],"dim":8,"distance":"cosine","domain_whitening":null,"dtype":"uint16","feature_mean":null,"feature_std":null,'
        b'"format":2,"input_size":32,"kind":"encoder","maps":[],"mean":[0.1,1234.5],"pool_cells":1,"projection":"linear","resolution_m":null,"std":[1.0,250.0],"tile_size":24}'
    )
    assert fingerprint(SPEC, state) == hashlib.sha256(written + struct.pack("<qff", 7, 1.0, -2.5)).hexdigest()


def test_model_json_is_canonical(files):
    raw = json.loads(files["model.json"])
    assert files["model.json"] == json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()
    assert raw["bands"] == ["red", "nir"]
    assert raw["mean"] == [0.1, 1234.5]


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 0.5, -1])
def test_truncated_tensors_are_refused(files, keep):
    whole = files["model.safetensors"]
    with pytest.raises(CheckpointError, match="cut off or altered"):
        load(files, tensors=whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])


def header(entries, data=b""):
    encoded = json.dumps(entries).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


HOSTILE = {
    "a header longer than the file": struct.pack("<Q", 2**62) + b"{}",
    "a tensor of an exabyte": header({"projection.bias": {"dtype": "F32", "shape": [2**58], "data_offsets": [0, 2**60]}}),
    "a shape that overflows": header({"projection.bias": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 4]}}, b"1234"),
    "offsets that go backwards": header({"projection.bias": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234"),
    "offsets outside the file": header({"projection.bias": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"1234"),
    "a type that does not exist": header({"projection.bias": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "no JSON": struct.pack("<Q", 4) + b"nope",
    "a pickle": pickle.dumps({"projection.bias": [1.0]}),
    "nothing at all": header({}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tensors_are_refused(files, name):
    with pytest.raises(CheckpointError):
        load(files, tensors=HOSTILE[name])


def altered(files, change):
    state = safetensors.torch.load(files["model.safetensors"])
    change(state)
    return safetensors.torch.save(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("projection.bias"), "lacks projection.bias"),
        (lambda state: state.update({"extra": torch.zeros(1)}), "holds 'extra'"),
        (lambda state: state.update({"projection.bias": torch.zeros(9)}), r"projection.bias is torch.float32 \(9,\)"),
        (lambda state: state.update({"projection.bias": torch.zeros(8, dtype=torch.float64)}), "torch.float64"),
        (lambda state: state["projection.bias"].fill_(torch.nan), "not finite"),
    ],
)
def test_tensors_that_are_not_the_architecture_s_are_refused(files, change, message):
    with pytest.raises(CheckpointError, match=message):
        load(files, tensors=altered(files, change))


def test_a_huge_architecture_with_small_tensors_is_refused_before_it_is_made(files):
    raw = json.loads(files["model.json"]) | {"backbone": "eva_giant_patch14_336", "input_size": 336}
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load(files, model_json=json.dumps(raw).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "no_such_net"},
        {"backbone": "hf-hub:someone/model"},
        {"backbone": "../../etc/passwd"},
        {"backbone": 3},
        {"dim": 0},
        {"dim": 10**12},
        {"dim": True},
        {"dim": 8.0},
        {"bands": []},
        {"bands": ["red", "red"]},
        {"bands": ["red", 3]},
        {"bands": "rn"},
        {"mean": [0.0]},
        {"mean": [0.0, float("nan")]},
        {"std": [1.0, 0.0]},
        {"std": [1.0, float("inf")]},
        {"std": [1.0, "2"]},
        {"dtype": "object"},
        {"dtype": "U8"},
        {"tile_size": -1},
        {"input_size": 10**9},
        {"kind": "pickle"},
        {"projection": "exec"},
        {"distance": "hamming"},
        {"resolution_m": 0.0},
        {"format": 1},
        {"maps": ["red", "nir"], "codes": [[], []]},
        {"maps": ["red"], "codes": [["1"]]},
        {"pool_cells": 0},
        {"domain_whitening": 0},
        {"feature_mean": [1.0]},
        {"kind": "statistics"},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_hostile_spec_is_refused(files, change):
    with pytest.raises(CheckpointError):
        load(files, model_json=json.dumps(json.loads(files["model.json"]) | change).encode())


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b" " * 5_000_000], ids=lambda data: f"{data[:3]!r} {len(data)}"
)
def test_what_is_no_spec_is_refused(files, data):
    with pytest.raises(CheckpointError):
        load(files, model_json=data)


def test_a_spec_that_lacks_a_key_is_refused(files):
    raw = json.loads(files["model.json"])
    del raw["mean"]
    with pytest.raises(CheckpointError, match="mean"):
        load(files, model_json=json.dumps(raw).encode())


@settings(max_examples=30, deadline=None)
@given(
    mean=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=5),
    scale=st.floats(1e-6, 1e6),
    resolution=st.none() | st.floats(1e-3, 1e4),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "float32"]),
)
def test_a_spec_comes_back_as_it_went(mean, scale, resolution, dtype):
    spec = ModelSpec(
        backbone="resnet18",
        dim=4,
        bands=tuple(f"b{number}" for number in range(len(mean))),
        dtype=dtype,
        mean=tuple(mean),
        std=(scale,) * len(mean),
        tile_size=64,
        input_size=96,
        resolution_m=resolution,
    )
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_training_state_comes_back_as_it_went():
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved = read_training_state(training_state_bytes({"optimizer": optimizer.state_dict(), "epoch": 3, "generation": None, "name": "x"}))
    assert saved["epoch"] == 3
    assert saved["generation"] is None
    torch.testing.assert_close(saved["optimizer"]["state"], optimizer.state_dict()["state"])


class Bomb:
    def __reduce__(self):
        return (exec, ("import sys; sys.rayjobs_was_attacked = True",))


def test_training_state_never_runs_code():
    for data in (pickle.dumps(Bomb()), torch_file(Bomb())):
        with pytest.raises(CheckpointError):
            read_training_state(data)
    assert not hasattr(sys, "rayjobs_was_attacked")


def torch_file(thing):
    buffer = io.BytesIO()
    torch.save({"state": thing}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("keep", [0, 10, 400, -30])
def test_a_truncated_training_state_is_refused(keep):
    with pytest.raises(CheckpointError, match=r"state\.pt"):
        read_training_state(training_state_bytes({"weights": torch.ones(1000)})[:keep])
