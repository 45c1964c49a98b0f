from __future__ import annotations

import pytest
import torch

from rayjobs import config
from rayjobs.errors import ConfigError
from rayjobs.models import backbones
from rayjobs.models.encoder import build
from rayjobs.models.section import ModelSection, spec_of

CASES = [
    ("resnext50_32x4d", 2, 24),
    ("resnext50_32x4d", 13, 48),
    ("vit_tiny_patch16_224", 3, 32),
    ("vit_tiny_patch16_224", 13, 48),
    ("deit_tiny_patch16_224", 2, 24),
    ("deit_tiny_patch16_224", 4, 64),
    ("efficientnet_b0", 2, 23),
    ("efficientnet_b0", 3, 64),
    ("efficientnet_b0", 4, 48),
    ("efficientnet_b0", 13, 32),
]


@pytest.mark.parametrize(("backbone", "bands", "size"), CASES)
def test_any_backbone_learns_from_tiles_of_any_size_and_number_of_bands(backbone, bands, size):
    spec = spec_of(
        config.build(ModelSection, {"backbone": backbone, "dim": 8}),
        bands=[f"b{number}" for number in range(bands)],
        mean=[100.0] * bands,
        std=[50.0] * bands,
        tile_size=size,
        resolution_m=10,
        dtype="uint8",
    )
    module = build(spec)
    pixels = torch.randint(0, 255, (4, bands, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = module(pixels)
    assert found.shape == (4, 8)
    found[:, 0].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())


def fits_from(monkeypatch, least):
    monkeypatch.setattr(backbones, "misfit", lambda _backbone, side, **_: None if side >= least else "too small")


def test_the_least_of_the_sides_that_networks_want_is_taken(monkeypatch):
    fits_from(monkeypatch, 50)
    assert backbones.fitting_side("resnet18", bands=3, at_least=50) == 50
    fits_from(monkeypatch, 53)
    assert backbones.fitting_side("resnet18", bands=3, at_least=50) == 56
    fits_from(monkeypatch, 130)
    assert backbones.fitting_side("resnet18", bands=3, at_least=50) == 160
    fits_from(monkeypatch, 239)
    assert backbones.fitting_side("crossvit_tiny_240", bands=3, at_least=50) == 240


def test_a_backbone_without_a_side_that_fits_is_an_error_with_a_remedy(monkeypatch):
    fits_from(monkeypatch, 1000)
    with pytest.raises(ConfigError, match=r"resnet18 takes no images of 300 to .* set model\.input_size or another backbone"):
        backbones.fitting_side("resnet18", bands=3, at_least=300)


@pytest.mark.parametrize(
    ("backbone", "count", "first", "last"),
    [
        ("resnet18", 5, "conv1.weight", "layer4.1.bn2.bias"),
        ("resnext50_32x4d", 5, "bn1.weight", "layer4.2.bn3.bias"),
        ("efficientnet_b0", 8, "conv_stem.weight", "conv_head.weight"),
        ("vit_tiny_patch16_224", 13, "pos_embed", "blocks.11.mlp.fc2.bias"),
        ("deit_tiny_patch16_224", 13, "cls_token", "norm.weight"),
    ],
)
def test_stages_hold_every_parameter_once_from_the_stem_to_the_end(backbone, count, first, last):
    with torch.device("meta"):
        network = backbones.create(backbone, bands=4, input_size=64)
    found = backbones.stages(network)
    assert len(found) == count
    assert sorted(name for stage in found for name in stage) == sorted(name for name, _ in network.named_parameters())
    assert first in found[0]
    assert last in found[-1]


def test_a_backbone_whose_stages_timm_does_not_tell_is_an_error_with_a_remedy():
    with torch.device("meta"):
        network = backbones.create("pit_ti_224", bands=3, input_size=64)
    with pytest.raises(ConfigError, match=r"PoolingVisionTransformer; set model\.freeze to 0 or all"):
        backbones.stages(network)


@pytest.mark.parametrize(("backbone", "last"), [("tf_efficientnet_lite0", True), ("resnext50_32x4d", True), ("resnet10t", False)])
def test_grouped_convolutions_are_laid_out_channels_last(backbone, last, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    network = backbones.create(backbone, bands=3, input_size=32)
    layout = backbones.memory_format(network)
    assert (layout == torch.channels_last) == last
    images = torch.rand(2, 3, 32, 32)
    expected = network.eval()(images)
    torch.testing.assert_close(network.to(memory_format=layout)(images), expected, atol=1e-4, rtol=1e-4)
