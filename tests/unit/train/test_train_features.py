"""The features of a frozen backbone in place of pixels: the same training, computed once, and never taken where they are damaged."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from rayjobs.config import build
from rayjobs.errors import ConfigError, TrainingError
from rayjobs.experiment import Experiment
from rayjobs.models.checkpoint import from_files
from rayjobs.models.section import FusionSection
from rayjobs.models.spec import ModelSpec
from rayjobs.storage import Lease
from rayjobs.train import features, mine
from rayjobs.train.augment import Draws
from rayjobs.train.batches import EpochPlan
from rayjobs.train.features import check_frozen, feature_bytes, frozen_features
from rayjobs.train.ground import Ground
from rayjobs.train.loop import begin_projection
from rayjobs.train.objective import Objective
from rayjobs.train.shown import ChipCache, FeatureCache, Projected
from rayjobs.train.state import TrainPlan, initial, restore, save
from rayjobs.train.step import Bench, train_epoch

TILES, SIDE, DIM = 23, 32, 8
"""23 tiles are no whole number of parts, nor of blocks."""
BATCH, STEPS, EPOCHS = 6, 3, 2
CPU = torch.device("cpu")
STILL = {"symmetries": False}


def experiment(folder, kept: int = 1, freeze: object = "all", **train: object) -> Experiment:
    raw = {
        "name": "x",
        "workspace": {"uri": f"file://{folder}/workspace"},
        "rasters": {"sources": [{"kind": "files", "uris": ["x.tif"]}]},
        "tiles": {"min_neg_dist": 0},
        "model": {"backbone": "resnet10t", "dim": DIM, "freeze": freeze, "whitening": 0.3},
        "loss": {"kind": "ntxent"},
        "miner": {"kind": "none"},
        "train": {
            "batch_size": BATCH,
            "precision": "fp32",
            "epochs": EPOCHS,
            "ema": 0.5,
            "augment": STILL,
            "frozen_features": kept,
            **train,
        },
    }
    return build(Experiment, raw)


@pytest.fixture(autouse=True)
def node(tmp_path, monkeypatch):
    """A node that holds nothing yet, and small parts."""
    monkeypatch.setattr(features, "tempfile", SimpleNamespace(gettempdir=lambda: str(tmp_path / "node")))
    monkeypatch.setattr(features, "_LEAST", 10)
    return tmp_path / "node"


def plan_of(folder, **keys: object) -> TrainPlan:
    spec = ModelSpec(
        backbone="resnet10t", dim=DIM, bands=("a", "b"), dtype="uint8", mean=(128.0, 120.0), std=(74.0, 70.0),
        tile_size=SIDE, input_size=SIDE, resolution_m=None,
    )  # fmt: skip
    told = SimpleNamespace(messages=[])
    told.post = SimpleNamespace(remote=told.messages.append)
    return TrainPlan(experiment=experiment(folder, **keys), source=SimpleNamespace(version="set"), spec=spec, mailbox=told, lease="")


def chips() -> ChipCache:
    pixels = np.random.default_rng(0).integers(0, 255, (TILES, 2, SIDE, SIDE)).astype(np.uint8)
    valid = np.random.default_rng(1).random((TILES, SIDE, SIDE)) < 0.9
    return ChipCache(pixels=pixels, valid=valid)


IDS = [f"{number:03}" for number in range(TILES)]


def ground() -> Ground:
    tiles = np.arange(TILES)
    return Ground(
        tile_ids=IDS,
        positions=np.stack([tiles * 5.0, 0.0 * tiles, 0.0 * tiles], axis=1),
        sizes=np.ones(TILES),
        reaches=np.ones(TILES),
        places=tiles,
        scenes=0 * tiles,
        dates=0 * tiles,
        labels=tiles % 4,
        fractions=np.empty((TILES, 0), np.float32),
    )


def kept_of(plan: TrainPlan, encoder, *, versions: int = 1, read=chips) -> FeatureCache:
    return frozen_features(plan, encoder, IDS, read, versions=versions, fills=not dist.is_initialized() or dist.get_rank() == 0)


def trained(folder, **keys: object) -> dict[str, torch.Tensor]:
    """Train as a worker does; return losses and weights, with what mining would embed."""
    plan = plan_of(folder, **keys)
    objective = Objective(plan.experiment, ground(), dim=DIM, device=CPU)
    state = initial_of(plan, objective)
    count = plan.experiment.train.frozen_features
    shown = kept_of(plan, state.module, versions=count) if count else chips()
    on = Bench(plan=plan, ground=ground(), shown=shown, device=CPU, objective=objective)
    begin_projection(on, state)
    for epoch in range(EPOCHS):
        rng = np.random.default_rng(epoch)
        members = np.stack([rng.permutation(TILES)[:BATCH] for _ in range(STEPS)])
        train_epoch(on, state, EpochPlan(members=members, groups=np.tile([0, 0, 1, 1, 2, 2], (STEPS, 1))))
        state.end_epoch()
    return {
        "losses": torch.tensor(list(state.losses)),
        "weights": torch.cat([value.double().flatten() for value in state.module.state_dict().values()]),
        "average": torch.cat([value.double().flatten() for value in state.learned.state_dict().values()]),
        "embedded": mine.embed_all(shown.network_of(state.module), shown, CPU),
    }


def initial_of(plan: TrainPlan, objective: Objective):
    """As `initial`, whose DDP is Ray's own."""
    if not dist.is_initialized():
        return initial(plan, objective, CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.train.torch.prepare_model", DistributedDataParallel)
        return initial(plan, objective, CPU)


def assert_alike(one, other, *, atol: float = 1e-5) -> None:
    for name, values in one.items():
        torch.testing.assert_close(values, other[name], rtol=1e-4, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("keys", [{}, {"micro_batch": 2}], ids=["at once", "in parts"])
def test_training_on_features_is_training_on_pixels(tmp_path, keys):
    on_pixels, on_features = (trained(tmp_path, kept=kept, **keys) for kept in (0, 1))
    assert on_pixels["losses"].std() > 0.01
    assert_alike(on_pixels, on_features)


def one_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    features._LEAST = 10
    features.tempfile = SimpleNamespace(gettempdir=lambda: f"{folder}/node")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = {kept: trained(f"{folder}/ranks", kept=kept, augment={"symmetries": True}) for kept in (1, 3)}
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_compute_the_features_and_learn_from_them_what_one_does(tmp_path, node):
    mp.spawn(one_rank, args=(2, str(tmp_path)), nprocs=2)
    forget(node)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for kept in (1, 3):
        alone = trained(tmp_path / "alone", kept=kept, augment={"symmetries": True})
        for found in ranks:
            assert_alike(alone, found[kept])
    parts = {path.relative_to(tmp_path / "ranks") for path in tmp_path.glob("ranks/workspace/features/x/*/part-*.npy")}
    assert len(parts) == 2 * 3
    for part in parts:
        np.testing.assert_array_equal(np.load(tmp_path / "ranks" / part), np.load(tmp_path / "alone" / part))


@pytest.fixture
def made(tmp_path):
    """A plan, its encoder, and the features as they were computed."""
    plan = plan_of(tmp_path)
    encoder = initial(plan, Objective(plan.experiment, ground(), dim=DIM, device=CPU), CPU).module
    return SimpleNamespace(plan=plan, encoder=encoder, found=kept_of(plan, encoder), artefact=plan.experiment.open_workspace().features)


def refuse() -> ChipCache:
    raise AssertionError("chips are read, though the features are there")


def forget(node) -> None:
    """Make the node one that holds nothing."""
    if node.exists():
        node.rename(node.with_name(f"{node.name}-{len(list(node.parent.iterdir()))}"))


def test_features_are_those_of_the_tiles_and_the_encoder_learns_nothing_from_them(made):
    with torch.inference_mode():
        expected = made.encoder.eval().features(*chips().read(np.arange(TILES), CPU)).numpy()
    np.testing.assert_allclose(made.found.values[:, 0], expected, atol=1e-5)
    assert made.found.values.shape == (TILES, 1, expected.shape[1])


def test_what_is_published_is_found_by_other_heads_seeds_and_nodes(made, node, tmp_path):
    forget(node)
    again = plan_of(tmp_path, seed=5, learning_rate=0.5)
    made.encoder.projection = torch.nn.Linear(512, 3)  # another head
    with torch.no_grad():
        found = kept_of(dataclasses.replace(again, spec=dataclasses.replace(again.spec, dim=3)), made.encoder, read=refuse)
    np.testing.assert_array_equal(found.values, made.found.values)
    assert [message["computed"] for message in again.mailbox.messages if message["kind"] == "features"] == [False]


def test_other_weights_pixels_or_changes_have_features_of_their_own(made, tmp_path):
    names = set(made.artefact.finished())

    def kept(plan, encoder=made.encoder, **keys):
        kept_of(plan, encoder, **keys)
        names.update(made.artefact.finished())
        return len(names)

    assert kept(made.plan) == 1
    assert kept(dataclasses.replace(made.plan, source=SimpleNamespace(version="other"))) == 2
    assert kept(dataclasses.replace(made.plan, spec=dataclasses.replace(made.plan.spec, mean=(1.0, 1.0)))) == 3
    assert kept(made.plan, versions=2) == 4
    assert kept(plan_of(tmp_path, seed=3), versions=2) == 5
    assert kept(plan_of(tmp_path, augment={"brightness": 0.5}), versions=2) == 6
    next(made.encoder.backbone.parameters()).data.add_(1)
    assert kept(made.plan) == 7


DAMAGES = {
    "gone": lambda store, key, _: store.delete(key),
    "cut short": lambda store, key, data: store.write(key, data[: len(data) // 2]),
    "another number": lambda store, key, data: store.write(key, data[:-1] + bytes([data[-1] ^ 1])),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["part-00001.npy", "manifest.json"])
def test_what_is_damaged_is_computed_again_and_nothing_else(made, node, damage, name, monkeypatch):
    if (damage, name) == ("another number", "manifest.json"):
        damage = "cut short"
    [version] = made.artefact.finished()
    key = f"{made.artefact.prefix}{version}/{name}"
    DAMAGES[damage](made.artefact.store, key, made.artefact.store.read(key))
    forget(node)
    computed = []
    monkeypatch.setattr(features, "embed_each", lambda *given: computed.append(given[3].tolist()) or mine.embed_each(*given))
    found = kept_of(made.plan, made.encoder)
    np.testing.assert_array_equal(found.values, made.found.values)
    assert computed == ([list(range(10, 20))] if name.endswith(".npy") else [])
    assert made.artefact.at(version).damage() is None
    forget(node)
    kept_of(made.plan, made.encoder, read=refuse)


def test_parts_of_a_killed_run_are_taken_and_forged_ones_are_not(made, node, monkeypatch):
    store, [version] = made.artefact.store, made.artefact.finished()
    prefix = f"{made.artefact.prefix}{version}/"
    store.delete(f"{prefix}manifest.json")
    store.delete(f"{prefix}part-00002.npy")
    part = store.read(f"{prefix}part-00000.npy")
    store.write(f"{prefix}part-00000.npy", part[:-4] + np.float32(np.nan).tobytes())
    forget(node)
    computed = []
    monkeypatch.setattr(features, "embed_each", lambda *given: computed.append(int(given[3][0])) or mine.embed_each(*given))
    np.testing.assert_array_equal(kept_of(made.plan, made.encoder).values, made.found.values)
    assert computed == [0, 20]


def test_a_file_of_python_objects_or_of_another_shape_is_none():
    whole = features._packed(np.ones((3, 1, 4), np.float32))
    np.testing.assert_array_equal(features._unpacked(whole, (3, 1, 4)), np.ones((3, 1, 4)))
    for data in (b"", whole + b"0", whole.replace(b"<f4", b"|O8"), features._packed(np.full((3, 1, 4), np.inf, np.float32))):
        with pytest.raises(features.DamagedError, match="altered"):
            features._unpacked(data, (3, 1, 4))
    with pytest.raises(features.DamagedError, match=r"does not hold float32 \(4, 1, 3\)"):
        features._unpacked(whole, (4, 1, 3))


def test_features_that_are_not_finite_end_training(made):
    with torch.no_grad():
        next(made.encoder.backbone.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingError, match="not finite"):
        kept_of(made.plan, made.encoder)


def test_versions_do_not_depend_on_how_many_tiles_a_device_embeds_at_a_time(made, node, tmp_path, monkeypatch):
    keys = {"kept": 3, "augment": {"symmetries": True, "brightness": 0.5, "rotate_degrees": 90.0}}
    found = kept_of(plan_of(tmp_path, **keys), made.encoder, versions=3)
    forget(node)
    monkeypatch.setattr(mine, "_EMBED_BLOCK", {"cpu": 3})
    again = kept_of(plan_of(tmp_path / "other", **keys), made.encoder, versions=3)
    np.testing.assert_allclose(again.values, found.values, atol=1e-5)


def test_versions_are_of_the_augmented_tile_and_drawn_for_each_place(made, tmp_path):
    plan = plan_of(tmp_path, kept=4, augment={"symmetries": True, "brightness": 0.5})
    found = kept_of(plan, made.encoder, versions=4)
    np.testing.assert_allclose(found.values[:, 0], made.found.values[:, 0], atol=1e-6)
    apart = np.abs(found.values[:, 1:] - found.values[:, :1]).max(axis=2)
    assert (apart > 1e-3).mean() > 0.9
    rows = np.full(400, 7)

    def drawn(share: slice) -> np.ndarray:
        draws = Draws(generator=torch.Generator().manual_seed(0), batch=400, share=share)
        return found.read(rows[share], CPU, draws)[0].numpy()

    whole = drawn(slice(0, 400))
    np.testing.assert_array_equal(np.concatenate([drawn(slice(0, 150)), drawn(slice(150, 400))]), whole)
    counts = [(whole == found.values[7, version]).all(axis=1).sum() for version in range(4)]
    assert sum(counts) == 400
    assert min(counts) > 60
    np.testing.assert_array_equal(found.read(rows, CPU)[0].numpy(), np.tile(found.values[7, 0], (400, 1)))


def test_checkpoints_are_of_the_whole_encoder_and_taken_up_again(tmp_path):
    plan = plan_of(tmp_path, ema=0.0)
    workspace = plan.experiment.open_workspace()
    with Lease(workspace.store, workspace.lease) as lease:
        plan = dataclasses.replace(plan, lease=lease.token)
        objective = Objective(plan.experiment, ground(), dim=DIM, device=CPU)
        state = initial(plan, objective, CPU)
        state.module.projection.weight.data.fill_(0.5)
        state.epoch = 1
        assert save(plan, state, objective)
        again = restore(plan, initial(plan, objective, CPU), objective, IDS)
    checkpoint = workspace.checkpoints.current()
    encoder = from_files(checkpoint.read("model.json"), checkpoint.read("model.safetensors")).module
    rows = np.arange(TILES)
    shown = kept_of(plan, again.module, versions=1)
    with torch.inference_mode():
        whole, part = encoder(*chips().read(rows, CPU)), again.parallel.eval()(*shown.read(rows, CPU))
    torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5)


def test_the_projection_alone_is_called_and_wrapped(tmp_path):
    plan = plan_of(tmp_path)
    state = initial(plan, Objective(plan.experiment, ground(), dim=DIM, device=CPU), CPU)
    assert isinstance(state.parallel, Projected)
    assert {name.split(".")[1] for name, _ in state.parallel.named_parameters()} == {"projection"}
    state.parallel.train()
    assert state.module.training
    assert not state.module.backbone.training
    assert state.module.projection.weight is dict(state.parallel.named_parameters())["parts.projection.weight"]


def test_a_backbone_that_learns_is_refused(tmp_path):
    for freeze in ("all", -1):
        check_frozen(experiment(tmp_path, freeze=freeze))
    check_frozen(experiment(tmp_path, kept=0, freeze=0))
    with pytest.raises(ConfigError, match=r"train\.frozen_features 1 .* model\.freeze 2"):
        check_frozen(experiment(tmp_path, freeze=2))


def test_maps_that_are_joined_before_the_backbone_are_refused(tmp_path):
    fused = experiment(tmp_path)
    model = dataclasses.replace(fused.model, fusion=FusionSection(maps={"dem": ()}))
    with pytest.raises(ConfigError, match=r"train\.frozen_features 1 .* model\.fusion"):
        check_frozen(dataclasses.replace(fused, model=model))


def test_one_version_is_none_to_compare(tmp_path):
    with pytest.raises(ConfigError, match="compares two; keep more"):
        check_frozen(experiment(tmp_path, supervision="views", augment={"symmetries": True}))
    check_frozen(experiment(tmp_path, kept=2, supervision="views", augment={"symmetries": True}))


def test_a_dry_run_counts_bytes(made, tmp_path):
    width = made.found.values.shape[2]
    assert feature_bytes(experiment(tmp_path, kept=3).train, made.plan.spec, 100) == 100 * 3 * width * 4
    assert feature_bytes(experiment(tmp_path, kept=0).train, made.plan.spec, 100) == 0
