from __future__ import annotations

import subprocess
import sys

import pytest

from rayjobs import config
from rayjobs.errors import ConfigError
from rayjobs.models.section import ModelSection, spec_of

RGB = {
    "bands": ["red", "green", "blue"],
    "mean": [1.0, 2.0, 3.0],
    "std": [4.0, 0.0, 6.0],
    "tile_size": 24,
    "resolution_m": 30,
    "dtype": "uint8",
}


def section(**values):
    return config.build(ModelSection, values)


def test_a_section_becomes_a_spec():
    spec = spec_of(section(backbone="resnet10t", dim=32, input_size=48), **RGB)
    assert (spec.backbone, spec.dim, spec.input_size, spec.tile_size, spec.resolution_m) == ("resnet10t", 32, 48, 24, 30.0)
    assert spec.mean == (1.0, 2.0, 3.0)
    assert spec.std == (4.0, 1.0, 6.0)  # a band that never varies is left as it is
    assert spec_of(section(), **RGB).input_size == 24
    assert spec_of(section(), **RGB).dim == 128


def test_without_projection_the_features_are_the_dimension():
    assert spec_of(section(backbone="resnet10t", projection="none"), **RGB).dim == 512
    with pytest.raises(ConfigError, match=r"the 512 features of resnet10t, not model\.dim = 64"):
        spec_of(section(backbone="resnet10t", projection="none", dim=64), **RGB)


def test_imagenet_normalisation_is_that_of_the_backbone_in_the_pixels_own_unit():
    spec = spec_of(section(backbone="resnet10t", normalisation="imagenet"), **RGB)
    assert spec.mean == pytest.approx([0.485 * 255, 0.456 * 255, 0.406 * 255])
    lite = spec_of(section(backbone="tf_efficientnet_lite0", normalisation="imagenet", pixel_range=10000), **(RGB | {"dtype": "uint16"}))
    assert lite.mean == lite.std == (5000.0,) * 3


def test_imagenet_normalisation_needs_three_bands_and_a_range():
    with pytest.raises(ConfigError, match=r"model\.pixel_range"):
        spec_of(section(normalisation="imagenet"), **(RGB | {"dtype": "uint16"}))
    with pytest.raises(ConfigError, match=r"the set has 2 \(red, nir\)"):
        spec_of(section(normalisation="imagenet"), **(RGB | {"bands": ["red", "nir"], "mean": [1, 1], "std": [1, 1]}))


def test_an_unknown_backbone_is_an_error_with_the_nearest():
    with pytest.raises(ConfigError, match="resnet18"):
        spec_of(section(backbone="resnet19"), **RGB)


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "../resnet18", "ResNet18", ""])
def test_a_backbone_is_a_plain_name(name):
    with pytest.raises(ConfigError):
        section(backbone=name)


def test_packaged_weights_are_for_their_backbone_alone():
    with pytest.raises(ConfigError, match="tf_efficientnet_lite0"):
        section(pretrained="imagenet-package", backbone="resnet18")


def test_reading_the_section_loads_no_torch():
    code = "import rayjobs.models.section, rayjobs.metric.section, sys; assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


BGRN = {"bands": ["blue", "green", "red", "nir"], "mean": [1.0, 2, 3, 4], "std": [5.0, 6, 7, 0]}
COLOURS = ["red", "green", "blue"]


def test_imagenet_normalisation_of_named_bands_leaves_the_others_their_own():
    model = section(backbone="resnet10t", normalisation="imagenet", rgb=COLOURS)
    spec = spec_of(model, **(RGB | BGRN))
    assert spec.mean == pytest.approx([0.406 * 255, 0.456 * 255, 0.485 * 255, 4.0])
    assert spec.std == pytest.approx([0.225 * 255, 0.224 * 255, 0.229 * 255, 1.0])
    with pytest.raises(ConfigError, match=r"model\.rgb"):
        spec_of(section(backbone="resnet10t", normalisation="imagenet"), **(RGB | BGRN))


def test_colours_are_bands_of_the_set_and_three():
    with pytest.raises(ConfigError, match=r"names B4, and the set has the bands blue, green, red, nir"):
        spec_of(section(rgb=["B4", "green", "blue"]), **(RGB | BGRN))
    for wrong in (["red", "green"], ["red", "green", "red"], "red"):
        with pytest.raises(ConfigError, match="rgb"):
            section(rgb=wrong)


@pytest.mark.parametrize(
    ("backbone", "tile", "side"),
    [("resnet10t", 23, 23), ("vit_tiny_patch16_224", 24, 32), ("vit_tiny_patch16_224", 48, 48), ("convnext_atto", 30, 32)],
)
def test_tiles_of_any_size_are_brought_to_the_next_that_the_backbone_takes(backbone, tile, side):
    assert spec_of(section(backbone=backbone), **(RGB | {"tile_size": tile})).input_size == side


def test_an_input_size_that_the_backbone_cannot_take_is_refused_with_one_that_it_can():
    with pytest.raises(ConfigError, match=r"input_size = 24 pixels \(its patches would leave out 8 pixels at the edge\); 32 would do"):
        spec_of(section(backbone="vit_tiny_patch16_224", input_size=24), **RGB)
    with pytest.raises(ConfigError, match=r"convnext_atto cannot take .*; 32 would do"):
        spec_of(section(backbone="convnext_atto", input_size=30), **RGB)


def test_more_frozen_stages_than_there_are_is_an_error_before_training():
    assert spec_of(section(backbone="resnet10t", freeze=5), **RGB)
    with pytest.raises(ConfigError, match=r"model\.freeze is 6, and resnet10t has 5 stages"):
        spec_of(section(backbone="resnet10t", freeze=6), **RGB)
    assert section(freeze="all").freeze == "all"
    for wrong in (-2, "some", 1.5):
        with pytest.raises(ConfigError, match="freeze"):
            section(freeze=wrong)


def test_something_must_be_left_to_learn():
    for everything in (-1, "all"):
        with pytest.raises(ConfigError, match="nothing to learn"):
            section(freeze=everything, projection="none")
