"""The projection that pretrained features begin with: against NumPy's singular values, and what it must do at its limits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rayjobs.config import build as build_section
from rayjobs.errors import ConfigError
from rayjobs.models.encoder import Encoder, ModelSpec, build
from rayjobs.models.section import ModelSection, spec_of
from rayjobs.models.whitening import whitening
from rayjobs.train.loop import begin_projection
from rayjobs.train.shown import ChipCache

BANDS = {"bands": ("r", "g", "b"), "mean": (100, 100, 100), "std": (50, 50, 50), "tile_size": 32, "resolution_m": None, "dtype": "uint8"}


def features(count: int = 60, width: int = 7) -> np.ndarray:
    """Positive, correlated, with a large mean, as pooled activations are."""
    rng = np.random.default_rng(0)
    return np.abs(rng.normal(0, [9, 5, 3, 2, 1, 0.5, 0.1][:width], (count, width)) @ rng.normal(0, 1, (width, width)) + 20)


def applied(values: np.ndarray, dim: int, shrinkage: float) -> np.ndarray:
    weight, bias = whitening(torch.from_numpy(values).float(), dim, shrinkage)
    return values @ weight.double().numpy().T + bias.double().numpy()


@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 10.0])
def test_directions_are_scaled_as_the_formula_says(shrinkage):
    values = features()
    centred = values - values.mean(0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    share = singular**2 / singular[0] ** 2
    expected = centred @ directions.T * np.sqrt(shrinkage / (share + shrinkage)) @ directions
    np.testing.assert_allclose(applied(values, 7, shrinkage), expected, atol=1e-3)


def test_much_shrinkage_only_centres_and_little_makes_all_directions_even():
    values = features()
    np.testing.assert_allclose(applied(values, 7, 1e6), values - values.mean(0), atol=1e-3)
    even = np.cov(applied(values, 7, 1e-9).T)
    np.testing.assert_allclose(even / even[0, 0], np.eye(7), atol=2e-2)


def test_fewer_numbers_keep_the_directions_of_greatest_variance():
    values = features()
    found = applied(values, 3, 1e6)
    greatest = np.linalg.svd(values - values.mean(0), compute_uv=False)[:3]
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), greatest, rtol=1e-3)


def test_fewer_images_than_features_do():
    assert np.isfinite(applied(features(count=4), 7, 0.3)).all()


def test_features_that_are_all_alike_stay_finite():
    weight, bias = whitening(torch.full((5, 4), 3.0), 2, 0.3)
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()


def made(**model: object) -> tuple[ModelSection, ModelSpec]:
    section = build_section(ModelSection, {"backbone": "resnet10t", "dim": 512, "whitening": 0.3, **model})
    return section, spec_of(section, **BANDS)


@pytest.mark.parametrize("dim", [512, 16])
def test_training_begins_with_the_whitened_features_of_its_tiles(dim):
    section, spec = made(dim=dim)
    encoder = build(spec, 0)
    assert isinstance(encoder, Encoder)
    pixels = np.random.default_rng(0).integers(0, 255, (24, 3, 32, 32), np.uint8)
    chips = ChipCache(pixels=pixels, valid=np.ones((24, 32, 32), bool))
    on = SimpleNamespace(plan=SimpleNamespace(experiment=SimpleNamespace(model=section)), shown=chips, device=torch.device("cpu"))
    begin_projection(on, SimpleNamespace(module=encoder))
    encoder.eval()
    with torch.inference_mode():
        raw, embedded = encoder.features(torch.from_numpy(pixels)).numpy(), encoder(torch.from_numpy(pixels)).numpy()
    expected = applied(raw.astype(np.float64), dim, 0.3)
    np.testing.assert_allclose(embedded, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-4)


def test_without_the_key_the_projection_stays_random():
    section, spec = made(whitening=None)
    encoder = build(spec, 0)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    on = SimpleNamespace(plan=SimpleNamespace(experiment=SimpleNamespace(model=section)), shown=None, device=torch.device("cpu"))
    begin_projection(on, SimpleNamespace(module=encoder))
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_what_cannot_be_whitened_is_refused():
    with pytest.raises(ConfigError, match="whitening begins a linear projection, and projection is none"):
        build_section(ModelSection, {"projection": "none", "whitening": 0.3})
    with pytest.raises(ConfigError, match=r"no more numbers than the 512 features of resnet10t; lower model\.dim \(513\)"):
        made(dim=513)


def test_very_many_features_are_whitened_in_their_strongest_directions(monkeypatch):
    features = torch.randn(60, 40, generator=torch.Generator().manual_seed(3)) * torch.logspace(1, -2, 40) + 5
    exact = whitening(features, 6, 0.1)
    monkeypatch.setattr("rayjobs.models.whitening._MANY", 30)
    found = whitening(features, 6, 0.1)
    made, expected = (features @ each.weight.T + each.bias for each in (found, exact))
    assert torch.allclose(made.abs(), expected.abs(), atol=1e-2)
    assert torch.equal(found.weight, whitening(features, 6, 0.1).weight)
