"""What of an encoder learns, how fast, and the average of what it learned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rayjobs.config import build as build_section
from rayjobs.errors import ConfigError
from rayjobs.models.average import WeightAverage
from rayjobs.models.checkpoint import read_training_state, training_state_bytes
from rayjobs.models.encoder import build, parameter_groups
from rayjobs.models.section import ModelSection
from rayjobs.models.spec import ModelSpec

RATES = {"backbone_rate": 1e-4, "head_rate": 1e-3, "weight_decay": 0.05}


def encoder(backbone="resnet10t", **changes):
    values = {"dim": 8, "bands": ("red", "nir"), "dtype": "uint8", "mean": (100.0, 120.0), "std": (40.0, 50.0)}
    sizes = {"tile_size": 32, "input_size": 32, "resolution_m": None}
    return build(ModelSpec(backbone=backbone, **(values | sizes | changes)), seed=1)


def train(module, steps=3, after=None):
    """Some steps of AdamW on noise."""
    optimizer = torch.optim.AdamW(parameter_groups(module, **RATES))
    generator = torch.Generator().manual_seed(0)
    module.train()
    for _ in range(steps):
        pixels = torch.randint(0, 255, (6, 2, 32, 32), generator=generator, dtype=torch.uint8)
        optimizer.zero_grad()
        module(pixels)[:, 0].sum().backward()
        optimizer.step()
        if after:
            after()


def moved(module, before):
    """Names in the state that differ from what they were."""
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


STEM = ("backbone.conv1", "backbone.bn1")


@pytest.mark.parametrize(
    ("stages", "frozen"),
    [
        (0, ()),
        (1, STEM),
        (3, (*STEM, "backbone.layer1", "backbone.layer2")),
        (5, ("backbone",)),
        (-1, ("backbone",)),
        ("all", ("backbone",)),
    ],
)
def test_frozen_stages_get_no_gradient_and_their_statistics_do_not_move(stages, frozen):
    module = encoder()
    module.freeze(stages)
    before = state_of(module)
    train(module)
    for name, parameter in module.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name
    stay = {name for name in before if name.startswith(frozen)} if frozen else set()
    assert moved(module, before) == before.keys() - stay


def test_frozen_blocks_of_a_transformer_stay_as_they_are():
    module = encoder("vit_tiny_patch16_224")
    module.freeze(2)
    before = state_of(module)
    train(module)
    frozen = ("backbone.cls_token", "backbone.pos_embed", "backbone.patch_embed", "backbone.blocks.0.")
    learning = {name for name in before if not name.startswith(frozen)}
    assert moved(module, before) == learning


def test_frozen_stages_stay_in_evaluation_mode_and_the_others_follow():
    module = encoder()
    module.freeze(2)
    assert not module.train().backbone.layer1[0].bn1.training
    assert not module.backbone.bn1.training
    assert module.backbone.layer2[0].bn1.training
    assert module.training
    assert not any(layer.training for layer in module.eval().modules())


def test_frozen_batch_norms_keep_their_statistics_while_their_weights_learn():
    module = encoder()
    module.freeze(0, batch_norms=True)
    before = state_of(module)
    train(module)
    statistics = {
        name for name in before if name.startswith("backbone") and name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }
    assert statistics
    assert moved(module, before) == before.keys() - statistics
    module.freeze(0)
    train(module)
    assert statistics <= moved(module, before)


def test_what_was_frozen_can_learn_again():
    module = encoder()
    module.freeze("all")
    module.freeze(0)
    before = state_of(module)
    train(module)
    assert moved(module, before) == before.keys()


def test_more_stages_than_there_are_cannot_be_frozen():
    with pytest.raises(ConfigError, match="resnet10t has 5 stages"):
        encoder().freeze(6)


@pytest.mark.parametrize("backbone", ["resnet10t", "vit_tiny_patch16_224", "tf_efficientnet_lite0", "convnext_atto"])
@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_groups_hold_every_parameter_once_with_its_rate_and_decay(backbone, projection):
    module = encoder(backbone, projection=projection)
    groups = parameter_groups(module, **RATES)
    named = {parameter: name for name, parameter in module.named_parameters()}
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len(named)
    assert set(grouped) == set(named)
    norms = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)
    of_norms = {parameter for layer in module.modules() if isinstance(layer, norms) for parameter in layer.parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = named[parameter]
            exempt = parameter in of_norms or name.endswith((".bias", "cls_token", "pos_embed", ".gamma"))
            assert group["weight_decay"] == (0 if exempt else 0.05), name
            assert group["lr"] == group["initial_lr"] == (1e-4 if name.startswith("backbone.") else 1e-3), name


def test_groups_leave_out_what_is_frozen():
    module = encoder()
    module.freeze(4)
    grouped = {parameter for group in parameter_groups(module, **RATES) for parameter in group["params"]}
    assert grouped == {*module.backbone.layer4.parameters(), *module.projection.parameters()}
    torch.optim.AdamW(parameter_groups(module, **RATES))


def by_hand(states, decay):
    """The average of a list of states after one update each, number by number in float64."""
    average = {name: value.double() for name, value in states[0].items()}
    for number, state in enumerate(states[1:], start=1):
        kept = min(decay, (1 + number) / (10 + number))
        for name, value in state.items():
            average[name] = kept * average[name] + (1 - kept) * value.double() if value.is_floating_point() else value.double()
    return average


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_average_is_that_computed_by_hand(decay):
    module = encoder()
    average, states = WeightAverage(module, decay=decay), []

    def after():
        average.update(module)
        states.append(state_of(module))

    train(module, steps=5, after=after)
    found = average.module.state_dict()
    assert found.keys() == module.state_dict().keys()
    for name, wanted in by_hand(states, decay).items():
        torch.testing.assert_close(found[name].double(), wanted, atol=1e-6, rtol=1e-5)
        assert found[name].dtype == states[0][name].dtype
    assert average.updates == 5
    assert int(found["backbone.bn1.num_batches_tracked"]) == 5
    assert moved(average.module, module.state_dict()) != set()


def test_the_average_leaves_the_encoder_alone_and_takes_no_gradient():
    module = encoder()
    average = WeightAverage(module, decay=0.9)
    before = state_of(average.module)
    train(module, steps=1)
    assert not moved(average.module, before)
    assert not average.module.training
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_the_normalisation_stays_what_it_was():
    module = encoder()
    average = WeightAverage(module, decay=0.9)
    for _ in range(5):
        average.update(module)
    assert torch.equal(average.module.standardise.mean, module.standardise.mean)
    assert not moved(average.module, module.state_dict())


def test_a_kept_average_goes_on_as_if_never_interrupted():
    module = encoder()
    whole, states = WeightAverage(module, decay=0.9), []

    def after():
        whole.update(module)
        states.append(state_of(module))

    train(module, steps=4, after=after)
    first = WeightAverage(module, decay=0.9)
    for state in states[:2]:
        module.load_state_dict(state)
        first.update(module)
    second = WeightAverage(encoder(), decay=0.9)
    second.load_state_dict(read_training_state(training_state_bytes({"average": first.state_dict()}))["average"])
    for state in states[2:]:
        module.load_state_dict(state)
        second.update(module)
    assert not moved(second.module, whole.module.state_dict())
    assert second.updates == whole.updates == 4


@pytest.mark.parametrize("backbone", ["resnet10t", "vit_tiny_patch16_224"])
def test_activations_computed_again_give_the_same_gradients(backbone):
    plain, sparing = encoder(backbone), encoder(backbone)
    sparing.checkpoint_activations()
    found = []
    for module in (plain, sparing):
        torch.manual_seed(3)
        train(module)
        found.append(torch.cat([parameter.grad.flatten() for parameter in module.parameters()]))
    torch.testing.assert_close(found[1], found[0])


def test_batch_norms_that_look_at_all_ranks_keep_their_names_and_numbers():
    module = encoder(projection="mlp")
    before = state_of(module)
    module.synchronise_batch_norms()
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(layer, nn.SyncBatchNorm) for layer in norms)
    assert not moved(module, before)


def test_batch_norms_of_nothing_are_not_frozen():
    with pytest.raises(ConfigError, match="freeze_batch_norm keeps the statistics of pretrained weights"):
        build_section(ModelSection, {"freeze_batch_norm": True})
