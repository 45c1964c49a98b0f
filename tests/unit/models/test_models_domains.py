"""Domain whitening against plain linear algebra, and whose statistics move when."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from rayjobs import config
from rayjobs.errors import CheckpointError, ConfigError
from rayjobs.models.checkpoint import from_files, to_files
from rayjobs.models.domains import DomainWhitening
from rayjobs.models.encoder import build
from rayjobs.models.section import ModelSection, spec_of
from rayjobs.models.spec import ModelSpec

FEATURES, GROUP = 8, 4
SPEC = ModelSpec(
    backbone="resnet10t", dim=8, domain_whitening=64, bands=("a",), dtype="uint8", mean=(100.0,), std=(40.0,),
    tile_size=32, input_size=32, resolution_m=None,
)  # fmt: skip
SET = {"bands": ["a"], "mean": [1.0], "std": [1.0], "tile_size": 32, "resolution_m": None, "dtype": "uint8"}


def features(count: int = 4000, seed: int = 0) -> torch.Tensor:
    """Correlated within and across groups, far from 0."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, FEATURES)) @ rng.normal(size=(FEATURES, FEATURES)) + rng.normal(size=FEATURES) * 5
    return torch.from_numpy(mixed)


def naive(values: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Group by group: inverse(Cholesky((1 - eps) S + eps I)) (x - mean)."""
    parts = []
    for start in range(0, FEATURES, GROUP):
        group = slice(start, start + GROUP)
        factor = np.linalg.cholesky(0.999 * covariance[group, group] + 0.001 * np.eye(GROUP))
        parts.append((np.linalg.inv(factor) @ (values[:, group] - mean[group]).T).T)
    return np.concatenate(parts, axis=1)


def test_features_of_a_batch_are_white_within_groups_and_as_published():
    values = features()
    found = DomainWhitening(FEATURES, group_size=GROUP).train()(values).double().numpy()
    plain = values.numpy()
    np.testing.assert_allclose(found, naive(plain, plain.mean(0), np.cov(plain.T, bias=True)), atol=1e-5)
    covariance = np.cov(found.T, bias=True)
    for start in range(0, FEATURES, GROUP):
        np.testing.assert_allclose(covariance[start : start + GROUP, start : start + GROUP], np.eye(GROUP), atol=5e-3)
    assert abs(covariance[:GROUP, GROUP:]).max() > 0.1, "groups are whitened by themselves"


def test_running_statistics_move_by_a_tenth_and_evaluation_whitens_with_the_targets():
    layer = DomainWhitening(FEATURES, group_size=GROUP).train()
    source, target = features(seed=1), features(seed=2)
    for _ in range(2):
        layer(source, "source")
    layer(target, "target")
    np.testing.assert_allclose(layer.means[0].numpy(), (0.1 + 0.9 * 0.1) * source.numpy().mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.means[1].numpy(), 0.1 * target.numpy().mean(0), rtol=1e-5)
    covariance = 0.9 * np.eye(FEATURES) + 0.1 * np.cov(target.numpy().T, bias=True)
    for group, start in enumerate(range(0, FEATURES, GROUP)):
        part = slice(start, start + GROUP)
        np.testing.assert_allclose(layer.covariances[1, group].numpy(), covariance[part, part], rtol=1e-5, atol=1e-6)
    kept = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    found = layer.eval()(source)
    np.testing.assert_allclose(found.numpy(), naive(source.numpy(), 0.1 * target.numpy().mean(0), covariance), atol=1e-4)
    assert all(torch.equal(buffer, kept[name]) for name, buffer in layer.named_buffers()), "looking on moves nothing"


def test_without_another_domain_both_statistics_are_of_the_batches():
    layer = DomainWhitening(FEATURES, group_size=GROUP).train()
    layer(features())
    assert torch.equal(layer.means[0], layer.means[1])
    assert torch.equal(layer.covariances[0], layer.covariances[1])
    assert layer.means.abs().sum() > 0


def test_gradients_flow_through_the_statistics():
    layer = DomainWhitening(4, group_size=2).train()
    values = features(12)[:, :4].clone().requires_grad_()
    exact = layer._whitened  # in float64: the layer itself answers in float32

    def whitened(given: torch.Tensor) -> torch.Tensor:
        mean, covariance = layer._statistics(given)
        return exact(given - mean, covariance)

    assert torch.autograd.gradcheck(whitened, values)


def test_reduced_precision_takes_nothing_from_the_algebra():
    values = features(200).float()
    layer = DomainWhitening(FEATURES, group_size=GROUP).train()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(values)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, DomainWhitening(FEATURES, group_size=GROUP).train()(values), rtol=0, atol=0)


def test_one_image_is_no_error():
    assert torch.isfinite(DomainWhitening(4, group_size=2).train()(torch.randn(1, 4))).all()


@torch.no_grad()
def test_an_encoder_whitens_before_its_projection_and_keeps_both_statistics():
    module = build(SPEC, seed=1).train()
    pixels = torch.randint(0, 255, (70, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for _ in range(3):
        module(pixels, domain="source")
        module(255 - pixels, domain="target")
    module.eval()
    files = to_files(module, SPEC)
    loaded = from_files(files["model.json"], files["model.safetensors"])
    assert torch.equal(loaded.module(pixels), module(pixels))
    white = module.domain_whitening(module.features(pixels))
    torch.testing.assert_close(module(pixels), torch.nn.functional.normalize(module.projection(white)))
    assert not torch.equal(module.domain_whitening.means[0], module.domain_whitening.means[1])


def test_covariances_that_are_none_are_refused():
    module = build(SPEC, seed=1)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state["domain_whitening.covariances"][1, 0] *= -5
    with pytest.raises(CheckpointError, match="covariances"):
        from_files(SPEC.to_json(), safetensors.torch.save(state))


@pytest.mark.parametrize("size", [0, -3, 70_000, 3, 1.5, "32"])
def test_group_sizes_of_a_file_are_checked(size):
    raw = json.loads(SPEC.to_json()) | {"domain_whitening": size}
    with pytest.raises(CheckpointError):
        build(ModelSpec.from_json(json.dumps(raw).encode()))


def test_the_section_wants_groups_that_divide_the_features():
    found = spec_of(config.build(ModelSection, {"backbone": "resnet10t", "domain_whitening": {"group_size": 32}}), **SET)
    assert found.domain_whitening == 32
    with pytest.raises(ConfigError, match="group_size 30 does not divide the 512 features of resnet10t; take one of 1, 2, 4"):
        spec_of(config.build(ModelSection, {"backbone": "resnet10t", "domain_whitening": {"group_size": 30}}), **SET)
    with pytest.raises(ConfigError, match="twice"):
        config.build(ModelSection, {"whitening": 0.1, "domain_whitening": {}})
