from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from rayjobs.config import build as built
from rayjobs.errors import CheckpointError, ConfigError
from rayjobs.models.encoder import build
from rayjobs.models.section import ModelSection, spec_of
from rayjobs.models.spec import ModelSpec

CODES = (1.0, 4.0, 7.0)
SPEC = ModelSpec(
    backbone="resnet10t",
    dim=8,
    bands=("red", "labels", "nir", "height"),
    dtype="uint8",
    mean=(100.0, 3.0, 90.0, 50.0),
    std=(20.0, 2.0, 30.0, 10.0),
    tile_size=32,
    input_size=32,
    resolution_m=10.0,
    maps=("labels", "height"),
    codes=(CODES, ()),
)


def tiles(count=3):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 200, (count, 4, 32, 32))
    pixels[:, 1] = rng.choice([1, 4, 7, 9], (count, 32, 32))
    return torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(rng.random((count, 32, 32)) < 0.8)


def fused(module, pixels, valid=None):
    return module.fusion(module.standardise(pixels, valid), pixels, valid)


def test_at_first_each_band_of_imagery_is_halved_and_joined_with_half_the_mean_of_the_maps():
    pixels, valid = tiles()
    exact = pixels.double()
    red, height, nir = ((exact[:, at] - SPEC.mean[at]) / SPEC.std[at] for at in (0, 3, 2))
    greys = {1: -np.sqrt(1.5), 4: 0.0, 7: np.sqrt(1.5), 9: 0.0}  # three even steps of mean 0 and deviation 1; 9 is no code
    drawn = torch.tensor([[[greys[value] for value in row] for row in tile] for tile in pixels[:, 1].tolist()])
    expected = torch.stack([red, nir], dim=1) / 2 + ((drawn + height) / 4)[:, None]
    expected = torch.where(valid[:, None], expected, 0.0)
    assert torch.allclose(fused(build(SPEC).eval(), pixels, valid).double(), expected, atol=1e-5)


def test_imagery_alone_is_halved_and_joined_with_nothing():
    pixels, _ = tiles()
    module = build(SPEC).eval()
    alone = torch.stack([(pixels[:, at] - SPEC.mean[at]) / SPEC.std[at] / 2 for at in (0, 2)], dim=1)
    assert torch.allclose(fused(module, pixels[:, [0, 2]]), alone, atol=1e-6)
    assert module(pixels[:, [0, 2]]).shape == (3, 8)


def test_maps_alone_are_told_by_their_number():
    spec = dataclasses.replace(SPEC, bands=SPEC.bands[:3], mean=SPEC.mean[:3], std=SPEC.std[:3], maps=("labels",), codes=(CODES,))
    pixels, _ = tiles()
    module = build(spec).eval()
    assert spec.modalities == (("red", "labels", "nir"), ("red", "nir"), ("labels",))
    both, drawn = fused(module, pixels[:, :3]), fused(module, pixels[:, [1]])
    assert torch.allclose(both - drawn, fused(module, pixels[:, [0, 2]]), atol=1e-6)
    with pytest.raises(CheckpointError, match=r"takes 3 or 2 or 1 .red, labels, nir or red, nir or labels"):
        module(torch.cat([pixels, pixels], dim=1))


def test_reduced_precision_resizes_what_was_joined():
    module = build(dataclasses.replace(SPEC, input_size=64)).eval()
    pixels, valid = tiles()
    with torch.autocast("cpu", torch.bfloat16):
        found = module(pixels, valid)
    assert torch.nn.functional.cosine_similarity(found, module(pixels, valid)).min() > 0.99


def test_in_training_images_lack_a_modality_as_often_as_told():
    pixels, _ = tiles(1)
    module = build(SPEC).train()
    module.fusion.dropout = 0.25
    with torch.no_grad():
        whole, without_maps = fused(module.eval(), pixels), fused(module.eval(), pixels[:, [0, 2]])
        torch.manual_seed(0)
        drawn = fused(module.train(), pixels.expand(400, -1, -1, -1))
    lacking_maps = sum(torch.allclose(one, without_maps[0], atol=1e-5) for one in drawn)
    lacking_imagery = sum(torch.allclose(one, (whole - without_maps)[0], atol=1e-5) for one in drawn)
    unchanged = sum(torch.allclose(one, whole[0], atol=1e-5) for one in drawn)
    assert lacking_maps + lacking_imagery + unchanged == 400
    assert 70 < lacking_maps < 130
    assert 70 < lacking_imagery < 130


def test_what_looks_past_a_modality_sees_as_where_it_is_absent():
    pixels, valid = tiles()
    module = build(SPEC).eval()
    without_maps = module(pixels[:, [0, 2]], valid)
    module.fusion.look_past("maps")
    assert torch.allclose(module(pixels, valid), without_maps, atol=1e-6)
    module.fusion.look_past("imagery")
    assert (fused(module, pixels, valid) == 0).all()


def test_imagery_can_be_left_as_it_is():
    pixels, valid = tiles()
    module = build(SPEC).eval()
    module.fusion.leave_imagery()
    assert torch.allclose(fused(module, pixels, valid), module.standardise(pixels, valid)[:, [0, 2]], atol=1e-6)


def section(**keys):
    return built(ModelSection, {"backbone": "resnet10t", "dim": 8, **keys})


def made(model, bands):
    return spec_of(model, bands=bands, mean=(100.0,) * len(bands), std=(9.0,) * len(bands), tile_size=32, resolution_m=1.0, dtype="uint8")


def test_the_section_says_which_bands_are_maps():
    model = section(fusion={"maps": {"labels": [1, 2], "height": []}, "dropout": 0.1}, rgb=["r", "g", "b"], normalisation="imagenet")
    spec = made(model, ("height", "r", "g", "b", "labels"))
    assert (spec.maps, spec.codes, spec.imagery) == (("height", "labels"), ((), (1.0, 2.0)), ("r", "g", "b"))
    assert spec.mean[0] == spec.mean[4] == 100.0 != spec.mean[1]
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert build(spec).backbone.conv1[0].in_channels == 3


@pytest.mark.parametrize(
    ("maps", "bands", "message"),
    [({"dem": []}, ("r", "g"), "maps names dem, and the set has the bands r, g"), ({"r": [], "g": [1]}, ("r", "g"), "names all bands")],
)
def test_maps_that_are_no_bands_or_all_of_them_are_refused(maps, bands, message):
    with pytest.raises(ConfigError, match=message):
        made(section(fusion={"maps": maps}), bands)


@pytest.mark.parametrize(
    "change",
    [
        {"maps": ("dem", "labels")},
        {"maps": ("labels", "labels")},
        {"codes": (CODES,)},
        {"codes": ((1.0, 1.0), ())},
        {"codes": ((1e999,), ())},
    ],
)
def test_a_hostile_spec_of_maps_is_refused(change):
    with pytest.raises(CheckpointError):
        dataclasses.replace(SPEC, **change)


def test_cells_keep_where_things_lie():
    spec = dataclasses.replace(SPEC, maps=(), codes=(), pool_cells=2, input_size=64, projection="none", dim=4 * 512)
    module = build(spec).eval()
    pixels, _ = tiles()
    found = module.feature_map(pixels)
    expected = [found[:, :, rows, columns].mean(dim=(2, 3)) for rows in (slice(1), slice(1, 2)) for columns in (slice(1), slice(1, 2))]
    assert found.shape[-2:] == (2, 2)
    assert torch.allclose(module.features(pixels), torch.stack(expected, dim=2).flatten(1), atol=1e-5)
    whole = build(dataclasses.replace(spec, pool_cells=1, dim=512)).eval()
    whole.load_state_dict(module.state_dict())
    assert torch.allclose(torch.stack(expected).mean(dim=0), whole.features(pixels), atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"pool_cells": 3, "input_size": 64}, "2 x 2 cells of 512"),
        ({"backbone": "vgg11", "pool_cells": 2, "input_size": 64}, "2 x 2 cells of 512"),
    ],
)
def test_cells_that_the_backbone_has_not_are_refused(keys, told):
    with pytest.raises(ConfigError, match=told):
        made(section(**keys), ("r", "g", "b"))
