from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from rayjobs.errors import CheckpointError, ConfigError
from rayjobs.models import backbones
from rayjobs.models.encoder import Encoder, ImageStatistics, build, check_bands, parameter_count, standardised, statistics_spec
from rayjobs.models.spec import ModelSpec


def spec(**changes):
    values = {
        "backbone": "resnet10t",
        "dim": 16,
        "bands": ("red", "green", "nir", "swir"),
        "dtype": "uint16",
        "mean": (900.0, 1000.0, 2500.0, 1800.0),
        "std": (300.0, 250.0, 700.0, 500.0),
        "tile_size": 32,
        "input_size": 32,
        "resolution_m": 30.0,
    }
    return ModelSpec(**(values | changes))


def pixels_of(count=3, bands=4, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4000, (count, bands, size, size), generator=generator, dtype=torch.int32)


def rand_valid(count=3, size=32, seed=1):
    return torch.rand(count, size, size, generator=torch.Generator().manual_seed(seed)) > 0.3


@pytest.fixture(scope="module")
def encoder():
    return build(spec(), seed=3).eval()


@torch.inference_mode()
@pytest.mark.parametrize("backbone", ["resnet10t", "tf_efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto"])
@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_any_backbone_gives_embeddings_of_length_one(backbone, projection):
    module = build(spec(backbone=backbone, projection=projection, input_size=64)).eval()
    found = module(pixels_of())
    assert found.shape == (3, 16)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3), atol=1e-6, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.float32, torch.float64])
def test_pixels_of_any_type_give_the_same_embedding(encoder, dtype):
    pixels = pixels_of() % 250
    torch.testing.assert_close(encoder(pixels.to(dtype)), encoder(pixels), atol=0, rtol=0)


@torch.inference_mode()
def test_invalid_pixels_do_not_matter_whatever_they_hold(encoder):
    pixels, valid = pixels_of().float(), rand_valid()
    other = torch.where(valid[:, None], pixels, torch.nan)
    torch.testing.assert_close(encoder(other, valid), encoder(pixels, valid), atol=0, rtol=0)
    filled = torch.where(valid[:, None], pixels, torch.tensor(spec().mean).view(-1, 1, 1))
    torch.testing.assert_close(encoder(filled), encoder(pixels, valid), atol=1e-6, rtol=0)


@torch.inference_mode()
def test_the_embedding_is_that_of_the_steps_done_one_by_one(encoder):
    pixels = pixels_of(size=48)
    images = (pixels.double() - torch.tensor(spec().mean).double()[:, None, None]) / torch.tensor(spec().std).double()[:, None, None]
    resized = nn.functional.interpolate(images.float(), (32, 32), mode="bilinear", antialias=True)
    raw = encoder.projection(encoder.backbone(resized))
    torch.testing.assert_close(encoder(pixels), raw / raw.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_tile_has_the_same_embedding_in_any_batch(encoder):
    pixels, valid = pixels_of(5), rand_valid(5)
    whole = encoder(pixels, valid)
    torch.testing.assert_close(torch.cat([encoder(pixels[i : i + 1], valid[i : i + 1]) for i in range(5)]), whole, atol=1e-6, rtol=0)


def test_a_seed_gives_the_same_weights_and_leaves_the_global_random_state():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    once, again, other = build(spec(), seed=3), build(spec(), seed=3), build(spec(), seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    same = [torch.equal(left, right) for left, right in zip(once.state_dict().values(), again.state_dict().values(), strict=True)]
    assert all(same)
    assert not torch.equal(once.projection.weight, other.projection.weight)


def test_the_parameter_count_is_that_of_the_module():
    assert parameter_count(spec()) == sum(parameter.numel() for parameter in build(spec()).parameters())


def test_without_projection_the_embedding_has_the_backbone_s_features():
    assert build(spec(projection="none", dim=512)).eval()(pixels_of()).shape == (3, 512)
    with pytest.raises(CheckpointError, match="gives 512 features"):
        build(spec(projection="none"))


def test_all_weights_get_a_gradient():
    module = build(spec(projection="mlp"))
    module(pixels_of(), rand_valid())[:, 0].sum().backward()
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in module.parameters())


@pytest.mark.parametrize("name", ["no_such_net", "hf-hub:someone/model", "local-dir:/tmp", "../resnet18", "/etc/passwd", ""])
def test_only_names_that_timm_has_reach_timm(name, monkeypatch):
    def never(*_args, **_options):
        pytest.fail("timm was asked")

    monkeypatch.setattr(backbones.timm, "create_model", never)
    with pytest.raises(CheckpointError):
        build(spec(backbone=name))


def test_other_bands_than_the_encoder_takes_are_refused_with_both_lists(encoder):
    with pytest.raises(CheckpointError, match=r"has 5 bands, the encoder takes 4 \(red, green, nir, swir\)"):
        encoder(pixels_of(bands=5))
    with pytest.raises(CheckpointError, match="bands red, green, blue; the encoder takes red, green, nir, swir"):
        check_bands(spec(), ["red", "green", "blue"])
    with pytest.raises(CheckpointError, match="swir, nir"):
        check_bands(spec(), ["red", "green", "swir", "nir"])
    check_bands(spec(), ["red", "green", "nir", "swir"])
    check_bands(spec(), 4)


def statistics():
    some = spec()
    return statistics_spec(bands=some.bands, mean=some.mean, std=some.std, tile_size=32, resolution_m=30.0, dtype="uint16")


def test_image_statistics_are_those_of_the_valid_pixels():
    pixels, valid = pixels_of(), rand_valid()
    found = build(statistics())(pixels, valid).numpy().reshape(3, 4, 4)
    for image in range(3):
        for band in range(4):
            values = pixels[image, band].numpy()[valid[image].numpy()].astype(float)
            values = (values - statistics().mean[band]) / statistics().std[band]
            wanted = [values.mean(), values.std(), values.min(), values.max()]
            np.testing.assert_allclose(found[image, :, band], wanted, rtol=1e-5, atol=1e-5)


def test_image_statistics_without_a_valid_pixel_are_those_of_the_mean():
    found = build(statistics())(pixels_of(2), torch.stack([torch.zeros(32, 32, dtype=torch.bool), torch.ones(32, 32, dtype=torch.bool)]))
    assert not found[0].any()
    torch.testing.assert_close(found[1:], build(statistics())(pixels_of(2)[1:]))


def test_standardised_statistics_have_mean_0_and_deviation_1():
    raw = build(statistics())(pixels_of(20)).numpy()
    raw[:, 5] = 2.5
    fitted = standardised(statistics(), raw)
    assert fitted.feature_std[5] == 1
    module = build(fitted)
    assert isinstance(module, ImageStatistics)
    found = module(pixels_of(20)).numpy()
    varied = [column for column in range(16) if column != 5]
    np.testing.assert_allclose(found[:, varied].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(found[:, varied].std(0), 1, atol=1e-4)


def test_statistics_learn_nothing():
    assert parameter_count(statistics()) == 0
    assert not build(statistics()).state_dict()


def test_an_encoder_keeps_its_normalisation_out_of_its_state(encoder):
    assert isinstance(encoder, Encoder)
    assert all(name.startswith(("backbone.", "projection.")) for name in encoder.state_dict())
    assert dataclasses.replace(spec(), mean=(0.0, 0.0, 0.0, 0.0)) != spec()


@torch.inference_mode()
@pytest.mark.parametrize("backbone", ["resnet10t", "tf_efficientnet_lite0", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_feature_map_is_what_timm_calls_the_last_one(backbone):
    size = 224 if backbone.startswith("swin") else 64
    module = build(spec(backbone=backbone, input_size=size)).eval()
    found = module.feature_map(pixels_of(2))
    images = nn.functional.interpolate(module.standardise(pixels_of(2), None), (size, size), mode="bilinear", antialias=True)
    if backbone == "tf_efficientnet_lite0":  # timm's own intermediates stop before the last convolution
        expected = module.backbone.forward_features(images)
    else:
        (expected,) = module.backbone.forward_intermediates(images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True)
    torch.testing.assert_close(found, expected)
    assert found.shape[1] == backbones.features_of(module.backbone)


@torch.inference_mode()
def test_features_lie_where_their_pixels_do():
    module = build(spec(backbone="vit_tiny_patch16_224", input_size=64, tile_size=64)).eval()
    pixels = pixels_of(1, size=64)
    changed = pixels.clone()
    changed[..., 48:, :16] += 3000  # the patch in the last row and first column
    apart = (module.feature_map(changed) - module.feature_map(pixels)).norm(dim=1)[0]
    assert apart.flatten().argmax() == 12


def test_a_backbone_without_a_map_says_so():
    with pytest.raises(ConfigError, match=r"model\.backbone"):
        backbones.feature_map(Flat(), torch.zeros(1, 3, 8, 8))


class Flat(nn.Module):
    num_features = 5

    def forward_features(self, images):
        return images.flatten(1)[:, :5]


def test_the_feature_map_of_image_statistics_is_the_pixels():
    plain = build(statistics_spec(bands=("a", "b"), mean=(10.0, 20.0), std=(2.0, 4.0), tile_size=3, resolution_m=None, dtype="uint8"))
    pixels, valid = torch.full((1, 2, 3, 3), 14, dtype=torch.uint8), torch.ones(1, 3, 3, dtype=torch.bool)
    valid[0, 0, 0] = False
    found = plain.feature_map(pixels, valid)
    assert found[0, :, 1, 1].tolist() == [2.0, -1.5]
    assert found[0, :, 0, 0].tolist() == [0.0, 0.0]
