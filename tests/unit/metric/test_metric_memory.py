from __future__ import annotations

import io

import pydantic
import pytest
import torch

from rayjobs.metric.losses import LOSSES, build_loss
from rayjobs.metric.memory import CrossBatchMemory
from rayjobs.metric.miners import MINERS, build_miner
from rayjobs.metric.relations import Reference
from rayjobs.metric.section import LossSection, MinerSection, why_no_tuples

DIM = 3


def batches(count, size, seed=0, items=20):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield (
            torch.randn(size, DIM, generator=generator),
            torch.randint(0, 4, (size,), generator=generator),
            torch.randint(0, items, (size,), generator=generator),
        )


def rows(embeddings, groups, items):
    return list(zip(embeddings.tolist(), groups.tolist(), items.tolist(), strict=True))


def reference(memory, items):
    """What a batch of items is compared with."""
    found = memory.remembered()
    return Reference(embeddings=found.embeddings, groups=found.groups, itself=items[:, None] == found.items)


@pytest.mark.parametrize("size", [1, 6, 7, 16, 100])
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_it_holds_what_it_saw_last(size, batch):
    memory, seen = CrossBatchMemory(size=size, dim=DIM), []
    for embeddings, groups, items in batches(9, batch):
        memory.update(embeddings, groups, items)
        seen += rows(embeddings, groups, items)
        assert sorted(rows(*memory.remembered())) == sorted(seen[-size:])
        assert memory.held == min(len(seen), size)


def test_it_answers_when_it_is_warm():
    memory = CrossBatchMemory(size=8, dim=DIM, warm_up=2)
    assert memory.remembered() is None
    answers = []
    for given in batches(4, 4):
        memory.update(*given)
        answers.append(memory.remembered() is not None)
    assert answers == [False, False, True, True]
    assert CrossBatchMemory(size=8, dim=DIM).remembered() is None


def test_it_is_taken_up_from_a_checkpoint_where_it_was_left():
    memory, copy = (CrossBatchMemory(size=10, dim=DIM, warm_up=1) for _ in range(2))
    for given in batches(3, 4):
        memory.update(*given)
    buffer = io.BytesIO()
    torch.save(memory.state_dict(), buffer)
    buffer.seek(0)
    copy.load_state_dict(torch.load(buffer, weights_only=True))
    for given in batches(2, 4, seed=1):
        memory.update(*given)
        copy.update(*given)
    for name, held in memory.state_dict().items():
        assert torch.equal(held, copy.state_dict()[name]), name


def test_what_was_given_out_stays_as_it_was_and_has_no_gradient():
    memory = CrossBatchMemory(size=4, dim=DIM)
    embeddings = torch.randn(4, DIM, requires_grad=True)
    items, groups = torch.arange(4), torch.arange(4) // 2
    memory.update(embeddings, groups, items)
    found = memory.remembered()
    before = found.embeddings.clone()
    loss = (embeddings @ found.embeddings.T).sum()
    memory.update(torch.randn(4, DIM), groups, items + 4)
    assert torch.equal(found.embeddings, before)
    assert not found.embeddings.requires_grad
    loss.backward()  # would fail, had the update written into what the graph holds
    torch.testing.assert_close(embeddings.grad, before.sum(0).expand(4, DIM))


def test_it_takes_embeddings_of_a_smaller_type():
    memory = CrossBatchMemory(size=4, dim=DIM)
    memory.update(torch.ones(2, DIM, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    assert memory.remembered().embeddings.dtype == torch.float32


ON_TUPLES = [
    section for kind in LOSSES if why_no_tuples(section := pydantic.TypeAdapter(LossSection).validate_python({"kind": kind})) is None
]


@pytest.mark.parametrize("section", ON_TUPLES, ids=lambda section: section.kind)
@pytest.mark.parametrize("miner", MINERS)
def test_every_loss_on_tuples_learns_from_it_with_every_miner(section, miner):
    memory, loss = CrossBatchMemory(size=48, dim=DIM), build_loss(section, dim=DIM)
    choose = build_miner(pydantic.TypeAdapter(MinerSection).validate_python({"kind": miner}))
    *past, (embeddings, groups, items) = batches(6, 16, items=500)
    for given in past:
        memory.update(*given)
    embeddings.requires_grad_()
    memory.update(embeddings, groups, items)
    others = reference(memory, items)
    forbidden = torch.rand(16, 48, generator=torch.Generator().manual_seed(1)) < 0.2
    tuples = choose(embeddings.detach(), groups, forbidden, reference=others, seed=3)
    cost = loss(embeddings, groups, tuples, reference=others)
    cost.backward()
    assert cost > 0
    assert torch.isfinite(embeddings.grad).all()
    assert embeddings.grad.any()
    for anchor, other in ((tuples[0], tuples[1]), (tuples[-2] if len(tuples) == 4 else tuples[0], tuples[-1])):
        assert not others.itself[anchor, other].any()
