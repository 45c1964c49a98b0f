"""Training beside tiles of another domain: what they teach, whose statistics move when, and that ranks stay together."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rayjobs.config import build
from rayjobs.errors import ConfigError
from rayjobs.experiment import Experiment
from rayjobs.metric.adaptation import entropy
from rayjobs.train.adapt import adapt
from rayjobs.train.batches import EpochPlan
from rayjobs.train.cache import ChipCache
from rayjobs.train.mine import embed_all
from rayjobs.train.objective import check_objective
from rayjobs.train.step import train_epoch
from tests.small_run import COUNT, CPU, SIDE, opened

BRIGHT = 200


def run(uri: str, *, model: dict | None = None, train: dict | None = None, **adaptation):
    """Return a small run and, as its `on`, a bench beside a target of brighter tiles."""
    made = opened(
        uri,
        "",
        model={"domain_whitening": 8, **(model or {})},
        adaptation={"target": "other", **adaptation},
        train={"augment": {"symmetries": False}, "ema": 0, **(train or {})},
    )
    rng = np.random.default_rng(7)
    pixels = rng.integers(BRIGHT, 255, (6, 1, SIDE, SIDE)).astype(np.uint8)
    made.on = dataclasses.replace(made.on, target=ChipCache(pixels=pixels, valid=np.ones((6, SIDE, SIDE), bool)))
    return made


def train(made, steps: int = 3) -> None:
    members = np.stack([np.random.default_rng(step).permutation(COUNT)[:4] for step in range(steps)])
    train_epoch(made.on, made.state, EpochPlan(members=members, groups=np.tile([0, 0, 1, 1], (steps, 1))))


def buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_each_batch_moves_the_statistics_of_its_own_domain(tmp_path, weight):
    made = run(f"file:{tmp_path}", weight=weight)
    train(made)
    layer = made.state.module.domain_whitening
    source, target = layer.means
    assert source.abs().sum() > 0
    assert target.abs().sum() > 0
    assert (source - target).norm() > 0.05 * source.norm(), "other tiles, other statistics"


def test_looking_on_moves_no_statistics(tmp_path):
    """Neither validation nor mining nor evaluation: an earlier system let the tiles that it validated on into its statistics."""
    made = run(f"file:{tmp_path}")
    train(made)
    before = buffers(made.state.module)
    held_out = ChipCache(pixels=made.on.shown.pixels[::-1].copy(), valid=made.on.shown.valid)
    embed_all(made.state.module, held_out, CPU)
    embed_all(made.state.module, made.on.shown, CPU)
    after = buffers(made.state.module)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert made.state.module.training


def test_the_target_is_whitened_with_its_own_statistics_where_tiles_are_embedded(tmp_path):
    made = run(f"file:{tmp_path}")
    train(made)
    module = copy.deepcopy(made.state.module).eval()
    module.domain_whitening.means[0] += 100  # of the source: nobody looks at them any more
    pixels = torch.from_numpy(made.on.shown.pixels)
    with torch.inference_mode():
        found, expected = module(pixels), made.state.module.eval()(pixels)
        module.domain_whitening.means[1] += 1
        assert torch.equal(found, expected)
        assert not torch.allclose(module(pixels), expected)


@pytest.mark.parametrize("term", ["entropy", "consensus"])
@pytest.mark.parametrize("projection", ["linear", "hash"])
def test_the_term_becomes_small(tmp_path, term, projection):
    """Of one batch that is seen again and again, with the network's weights as far as the term alone moves them."""
    made = run(f"file:{tmp_path}", model={"projection": projection, "dim": 8}, term=term, weight=5.0, train={"batch_size": 6})
    made.state.parallel.train()
    costs = []
    for _ in range(12):
        made.state.optimizer.zero_grad()
        costs.append(adapt(made.plan, made.state, made.on.target, lambda *image: made.state.parallel(*image, domain="target"), CPU))
        made.state.optimizer.step()
    assert costs[-1] < costs[0] - 1e-3


def test_the_term_and_its_gradient_are_those_of_the_batch_whether_or_not_it_is_taken_in_parts(tmp_path):
    """With a network and a whitening that look at one tile at a time: in evaluation mode."""
    found = {}
    for micro_batch in (None, 2):
        made = run(f"file:{tmp_path}", weight=0.5, train={"batch_size": 6, "micro_batch": micro_batch})
        made.state.module.eval()
        cost = adapt(made.plan, made.state, made.on.target, made.state.parallel, CPU)
        found[micro_batch] = cost, torch.cat([part.grad.flatten() for part in made.state.module.parameters()])
    outputs = made.state.module(torch.from_numpy(made.on.target.pixels))  # six of six: in another order
    plain = 0.5 * entropy(outputs)
    made.state.module.zero_grad()
    plain.backward()
    gradient = torch.cat([part.grad.flatten() for part in made.state.module.parameters()])
    for cost, learned in found.values():
        assert cost == pytest.approx(plain.item(), rel=1e-5)
        assert (learned - gradient).norm() < 1e-4 * gradient.norm()


def one_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    made = run(f"file:{folder}", train={"batch_size": 5, "tiles_per_group": 5})
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    made.state.parallel = torch.nn.parallel.DistributedDataParallel(made.state.module)
    members = np.stack([np.random.default_rng(step).permutation(COUNT)[:5] for step in range(3)])
    train_epoch(made.on, made.state, EpochPlan(members=members, groups=np.tile([0, 0, 1, 1, 1], (3, 1))))
    vectors = embed_all(made.state.module, made.on.shown, CPU)
    kept = {"weights": torch.cat([part.detach().flatten() for part in made.state.module.parameters()]), "vectors": vectors}
    torch.save({**kept, **buffers(made.state.module), "loss": torch.tensor(list(made.state.losses))}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_ranks_hold_the_same_weights_and_after_looking_on_the_same_statistics(tmp_path):
    mp.spawn(one_rank, args=(2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=name)


def test_a_target_without_statistics_of_its_own_is_refused(tmp_path):
    made = run(f"file:{tmp_path}")
    raw = {"name": "x", "rasters": {"sources": [{"kind": "files", "uris": ["x.tif"]}]}, "adaptation": {"target": "other"}}
    with pytest.raises(ConfigError, match=r"model\.domain_whitening"):
        check_objective(build(Experiment, raw), made.on.ground)
    check_objective(build(Experiment, raw | {"model": {"domain_whitening": {}}}), made.on.ground)
