"""Encoders that give codes: what training sees of them, what all else sees, and how they are kept."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from rayjobs import config
from rayjobs.errors import CheckpointError, ConfigError
from rayjobs.models.average import WeightAverage
from rayjobs.models.checkpoint import from_files, to_files
from rayjobs.models.encoder import Encoder, build, codes
from rayjobs.models.pyfunc import Embedder
from rayjobs.models.section import ModelSection, spec_of
from rayjobs.models.spec import ModelSpec

BITS = 24
SPEC = ModelSpec(
    backbone="resnet10t", projection="hash", dim=BITS, bands=("a", "b"), dtype="uint8", mean=(100.0, 90.0), std=(40.0, 30.0),
    tile_size=32, input_size=32, resolution_m=None,
)  # fmt: skip
SET = {"bands": ["a"], "mean": [1.0], "std": [1.0], "tile_size": 32, "resolution_m": None, "dtype": "uint8"}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build(SPEC, seed=2).eval()


def pixels(count: int = 5) -> torch.Tensor:
    return torch.randint(0, 255, (count, 2, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_the_net_is_that_of_the_earlier_system(encoder):
    linear = [layer for layer in encoder.projection if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(512, 256), (256, 128), (128, BITS)]
    assert [layer.negative_slope for layer in encoder.projection if isinstance(layer, nn.LeakyReLU)] == [0.2, 0.2]
    assert isinstance(encoder.projection[-1], nn.Linear), "no slope after the last: it gives the logits"
    for layer in linear:
        assert (layer.bias == 0.01).all()
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5  # Glorot and Bengio, 2010
        assert 0.9 * bound < layer.weight.abs().max() <= bound


@torch.inference_mode()
def test_codes_are_the_rounded_activations_and_their_cosine_tells_the_hamming_distance(encoder):
    found, floats = encoder(pixels()), encoder.activations(pixels())
    logits = encoder.projection(encoder.features(pixels()))
    bits = (1 / (1 + np.exp(-logits.double().numpy()))) > 0.5
    np.testing.assert_allclose(found.numpy(), np.where(bits, 1, -1) / np.sqrt(BITS), rtol=1e-6)
    assert found.dtype == floats.dtype == torch.float32
    for left, right in itertools.product(range(5), repeat=2):
        hamming = np.count_nonzero(bits[left] != bits[right])
        assert (found[left] @ found[right]).item() == pytest.approx(1 - 2 * hamming / BITS, abs=1e-6)
    h = 1 / (1 + np.exp(-logits.double().numpy()))
    np.testing.assert_allclose(floats.numpy(), h / np.linalg.norm(h, axis=1, keepdims=True), rtol=1e-5)


def test_exactly_one_half_is_bit_0():
    assert codes(torch.tensor([[0.0, -0.0, 1e-30, -1e-30]])).tolist() == [[-0.5, -0.5, 0.5, -0.5]]


def test_training_sees_the_logits_and_learns_from_them():
    module = build(SPEC, seed=2).train()
    found = module(pixels())
    assert found.shape == (5, BITS)
    assert (found.norm(dim=1) - 1).abs().min() > 1e-3, "of any length"
    found.sigmoid().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.projection.parameters())


@torch.inference_mode()
def test_a_checkpoint_gives_the_same_codes_also_to_mlflow_and_as_floats(encoder):
    files = to_files(encoder, SPEC)
    loaded = from_files(files["model.json"], files["model.safetensors"])
    assert torch.equal(loaded.module(pixels()), encoder(pixels()))
    np.testing.assert_array_equal(Embedder(loaded).predict(pixels().numpy()), encoder(pixels()).numpy())
    as_floats = from_files(dataclasses.replace(SPEC, projection="activations").to_json(), files["model.safetensors"])
    assert torch.equal(as_floats.module(pixels()), encoder.activations(pixels()))
    assert as_floats.fingerprint != loaded.fingerprint


@torch.inference_mode()
def test_an_average_of_weights_gives_codes_too(encoder):
    average = WeightAverage(encoder, decay=0.9)
    average.update(encoder)
    assert torch.equal(average.module(pixels()), encoder(pixels()))


def test_bits_that_fill_no_bytes_are_refused_where_they_are_asked_for_and_where_they_are_read():
    with pytest.raises(ConfigError, match="dim 12 bits are no whole bytes"):
        config.build(ModelSection, {"projection": "hash", "dim": 12})
    assert spec_of(config.build(ModelSection, {"projection": "hash", "dim": 40}), **SET).dim == 40
    raw = json.loads(SPEC.to_json())
    for wrong in ({"dim": 12}, {"distance": "euclidean"}, {"projection": "codes"}, {"kind": "statistics"}):
        with pytest.raises(CheckpointError, match=r"model\.json"):
            ModelSpec.from_json(json.dumps(raw | wrong).encode())


def test_frozen_backbones_leave_the_hash_net_to_learn():
    module = build(SPEC, seed=2)
    module.freeze("all")
    module.train()
    assert not module.backbone.training or not any(parameter.requires_grad for parameter in module.backbone.parameters())
    assert module(pixels()).requires_grad
