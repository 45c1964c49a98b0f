"""What is known of the training tiles: their pool, their proportions, and who is no negative of whom."""

from __future__ import annotations

import datetime
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rayjobs.config import build
from rayjobs.errors import ConfigError, TrainingError
from rayjobs.experiment import Experiment
from rayjobs.labels.store import LabelStore
from rayjobs.metric.guards import LabelGuard, Pairs, ProportionGuard
from rayjobs.storage import open_store
from rayjobs.tiles.table import SCHEMA, geoparquet_bytes
from rayjobs.train.batches import ByGeography, ByLabel, ByProportion, ByView
from rayjobs.train.given_labels import keep_labels
from rayjobs.train.ground import forbidden_pairs, ground_of, guards_of, supervise, target_tiles, training_tiles
from rayjobs.train.patience import check_patience, held_out_tiles
from tests.unit.labels.saying import land, said

CLASSES = ("crops", "forest", "water")


def table(count: int = 300, seed: int = 0) -> pa.Table:
    """Tiles of a picture, 40 pixels apart; a tenth belongs to another split, a seventh has no label, some are hardly covered."""
    rng = np.random.default_rng(seed)
    fractions = rng.dirichlet([1.0, 0.4, 0.1], count).astype(np.float32)
    names = [CLASSES[entry.argmax()] if number % 7 else None for number, entry in enumerate(fractions)]
    columns = {
        "tile_id": [f"{number * 7919 % 100_003:05d}" for number in range(count)],
        "scene_id": ["s"] * count,
        "row": [0] * count,
        "col": [40 * number for number in range(count)],
        "height": [10] * count,
        "width": [10] * count,
        "place_id": ["p"] * count,
        "block_id": ["b"] * count,
        "split": ["train" if number % 10 else "test" for number in range(count)],
        "label": names,
        "label_purity": fractions.max(axis=1),
        "label_coverage": np.where(np.arange(count) % 4 == 1, 0.3, 0.9).astype(np.float32),
        "label_fractions": fractions.tolist(),
    }
    blank = {name: [None] * count for name in SCHEMA.names if name not in columns}
    return pa.table({name: pa.array((columns | blank)[name], SCHEMA.field(name).type) for name in SCHEMA.names}, SCHEMA)


def source(tiles: pa.Table) -> SimpleNamespace:
    return SimpleNamespace(read=lambda name: geoparquet_bytes(tiles))  # noqa: ARG005  a set has one such file


def experiment(**sections) -> Experiment:
    return build(Experiment, {"name": "x", "rasters": {"sources": [{"kind": "files", "uris": ["x.tif"]}]}} | sections)


def proportions(**keys) -> Experiment:
    return experiment(train={"supervision": "proportions"} | keys)


def test_without_a_pool_all_training_tiles_are_used_in_order_of_their_ids():
    tiles = table()
    found = training_tiles(source(tiles), experiment())
    assert found["tile_id"].to_pylist() == sorted(row["tile_id"] for row in tiles.to_pylist() if row["split"] == "train")


def test_the_pool_takes_some_tiles_of_each_class_that_has_enough():
    tiles = table()
    settings = experiment(train={"supervision": "labels", "pool": {"per_class": 70, "min_per_class": 20}})
    found = training_tiles(source(tiles), settings)
    rows = sorted((row for row in tiles.to_pylist() if row["split"] == "train" and row["label"]), key=lambda row: row["tile_id"])
    counts = Counter(row["label"] for row in rows)
    assert counts["crops"] > 70 > counts["forest"] > 20 > counts["water"] > 0
    assert Counter(found["label"].to_pylist()) == {"crops": 70, "forest": counts["forest"]}
    assert found["tile_id"].to_pylist() == sorted(found["tile_id"].to_pylist())
    assert {*found["tile_id"].to_pylist()} < {row["tile_id"] for row in rows}


def shares(share: float, **pool: int) -> list[tuple[str, str]]:
    found = training_tiles(source(table()), experiment(train={"supervision": "labels", "pool": {"share": share, **pool}}))
    return list(zip(found["label"].to_pylist(), found["tile_id"].to_pylist(), strict=True))


def test_a_share_of_the_labels_is_that_of_each_class_and_part_of_every_larger_share():
    rows = [row for row in table().to_pylist() if row["split"] == "train" and row["label"]]
    counts = Counter(row["label"] for row in rows)
    before: set[tuple[str, str]] = set()
    for share in (0.001, 0.1, 0.35, 0.99):
        found = shares(share)
        assert Counter(label for label, _ in found) == {label: min(count, max(2, round(share * count))) for label, count in counts.items()}
        assert before < set(found)
        assert found == shares(share)
        before = set(found)


def test_another_seed_of_the_pool_withholds_other_labels():
    assert Counter(label for label, _ in shares(0.2)) == Counter(label for label, _ in shares(0.2, seed=1))
    assert 0 < len({*shares(0.2)} & {*shares(0.2, seed=1)}) < len(shares(0.2))


def test_with_proportions_the_pool_goes_by_dominant_class_where_it_is_known():
    tiles = table()
    found = training_tiles(source(tiles), proportions(pool={"per_class": 30}))
    rows = [row for row in tiles.to_pylist() if row["split"] == "train" and row["label_coverage"] >= 0.5]
    counts = Counter(int(np.argmax(row["label_fractions"])) for row in rows)
    assert Counter(int(np.argmax(entry)) for entry in found["label_fractions"].to_pylist()) == {
        name: min(count, 30) for name, count in counts.items()
    }
    assert min(found["label_coverage"].to_pylist()) >= 0.5


def test_an_empty_pool_is_an_error_with_a_remedy():
    for settings in (experiment(train={"supervision": "labels", "pool": {"min_per_class": 999}}), proportions(pool={"min_per_class": 999})):
        with pytest.raises(TrainingError, match="min_per_class"):
            training_tiles(source(table()), settings)


def test_of_a_set_that_is_adapted_to_training_tiles_alone_are_shown():
    tiles = table()
    found = target_tiles(source(tiles))
    assert found["tile_id"].to_pylist() == sorted(row["tile_id"] for row in tiles.to_pylist() if row["split"] == "train")
    held_out = tiles.filter(pc.not_equal(tiles["split"], "train"))
    with pytest.raises(ConfigError, match="no tile in its train split"):
        target_tiles(source(held_out))


def test_proportions_are_known_where_the_label_map_covers_enough():
    tiles = table()
    ground = ground_of(tiles, experiment())
    for row, fractions, label in zip(tiles.to_pylist(), ground.fractions, ground.labels, strict=True):
        assert fractions.tolist() == (row["label_fractions"] if row["label_coverage"] >= 0.5 else [0, 0, 0])
        assert label == (-1 if row["label"] is None else CLASSES.index(row["label"]))


def test_a_set_without_a_label_map_has_no_proportions():
    tiles = table()
    for name in ("label_coverage", "label_fractions", "label"):
        tiles = tiles.set_column(tiles.schema.get_field_index(name), SCHEMA.field(name), pa.nulls(tiles.num_rows, SCHEMA.field(name).type))
    ground = ground_of(tiles, proportions())
    assert ground.fractions.shape == (tiles.num_rows, 0)
    assert ground.classes == 0


def test_each_kind_of_supervision_is_made():
    tiles = table()
    made = {
        "geography": experiment(tiles={"max_pos_dist": 5.0, "min_neg_dist": 8.0}),
        "labels": experiment(train={"supervision": "labels"}),
        "proportions": proportions(),
        "views": experiment(train={"supervision": "views"}),
    }
    found = {name: supervise(settings, ground_of(tiles, settings)) for name, settings in made.items()}
    kinds = {"geography": ByGeography, "labels": ByLabel, "proportions": ByProportion, "views": ByView}
    assert {name: type(one) for name, one in found.items()} == kinds


def test_with_views_every_other_tile_is_a_negative():
    tiles = table(30)
    close = experiment(train={"supervision": "views"}, tiles={"min_neg_dist": 50.0, "max_pos_dist": 3.0, "max_neg_dist": 60.0})
    everyone = np.arange(30)
    assert not forbidden_pairs(close, ground_of(tiles, close), everyone, everyone).any()
    assert not {"label", "proportions"} & {guard.name for guard in guards_of(close, ground_of(tiles, close))}


def test_versions_of_a_tile_need_changes_that_make_them():
    with pytest.raises(ConfigError, match="augment"):
        experiment(train={"supervision": "views", "augment": {"symmetries": False}})
    with pytest.raises(ConfigError, match="pool is by class"):
        experiment(train={"supervision": "views", "pool": {"per_class": 3}})


def test_pairs_that_share_too_much_are_forbidden_and_refused_by_the_guard():
    settings = proportions(max_neg_shared=0.4)
    tiles = table(60)
    ground = ground_of(tiles, settings)
    first, second = np.arange(0, 60, 2), np.arange(0, 60, 3)
    forbidden = forbidden_pairs(settings, ground, first, second)
    (guard,) = [one for one in guards_of(settings, ground) if one.name == "proportions"]
    for row, one in enumerate(first.tolist()):
        for column, other in enumerate(second.tolist()):
            shared = sum(min(float(a), float(b)) for a, b in zip(ground.fractions[one], ground.fractions[other], strict=True))
            assert forbidden[row, column] == (shared > 0.4 or one == other)
            blank = np.zeros(1, np.float32)
            pair = Pairs(anchors=np.array([one]), candidates=np.array([other]), scores=blank, ceilings=blank, chosen=np.full((1, 1), -1))
            assert guard.refuses(pair)[0] == (shared > 0.4)
    assert not any(isinstance(one, LabelGuard) for one in guards_of(settings, ground))
    assert not any(isinstance(one, ProportionGuard) for one in guards_of(experiment(), ground))


def test_labels_guard_nothing_where_they_do_not_supervise():
    tiles = table(60)
    for settings, guarded in ((experiment(), False), (experiment(train={"supervision": "labels"}), True)):
        guards = guards_of(settings, ground_of(tiles, settings))
        assert any(isinstance(one, LabelGuard) for one in guards) == guarded


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"supervision": "proportions", "min_pos_shared": 0.4}, "max_neg_shared 0.5 is above min_pos_shared 0.4"),
        ({"pool": {"per_class": 5}}, "geography knows none"),
        ({"supervision": "labels", "pool": {"per_class": 0}}, "per_class"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        experiment(train=keys)


def dated(days):
    """The same twelve tiles of a picture on each of some days, as three scenes that lie on each other."""
    tiles = table(12)
    parts = []
    for number, day in enumerate(days):
        columns = {"tile_id": [f"{number}{name}" for name in tiles["tile_id"].to_pylist()], "datetime": [day] * 12, "split": ["train"] * 12}
        part = tiles
        for name, values in columns.items():
            part = part.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), pa.array(values, SCHEMA.field(name).type))
        parts.append(part)
    return pa.concat_tables(parts).sort_by("tile_id")


def test_tiles_of_one_place_on_several_dates_are_alike():
    days = [datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (2010, 2012, 2015)]
    made = experiment(train={"supervision": "places"})
    tiles = dated(days)
    found = supervise(made, ground_of(tiles, made))
    assert isinstance(found, ByGeography)
    columns = np.array(tiles["col"].to_pylist())
    for tile in range(tiles.num_rows):
        alike = found.known_positives(tile, 10)
        assert len(alike) == 2
        assert (columns[alike] == columns[tile]).all()
    forbidden = forbidden_pairs(made, ground_of(tiles, made), np.arange(36), np.arange(36))
    assert (forbidden == (columns[:, None] == columns[None, :])).all(), "other places are unlike, the neighbouring ones, too"


def test_places_on_one_date_are_refused():
    made = experiment(train={"supervision": "places"})
    tiles = dated([datetime.datetime(2010, 1, 1, tzinfo=datetime.UTC)])
    with pytest.raises(TrainingError, match="widen it, or sample all dates on one grid"):
        supervise(made, ground_of(tiles, made))


def test_labels_of_people_take_the_place_of_the_sets_own(tmp_path):
    store = open_store(f"file:{tmp_path}")
    land(store)
    tiles = table()
    trained = sorted(row["tile_id"] for row in tiles.to_pylist() if row["split"] == "train")
    others = sorted(row["tile_id"] for row in tiles.to_pylist() if row["split"] == "test")
    given = dict(zip([*trained[:6], others[0]], ["field", "field", "water", "water", "forest", None, "field"], strict=True))
    labels = LabelStore(store, "land")
    labels.append([said("anna", tile, name) for tile, name in given.items()])
    settings = experiment(workspace={"uri": f"file:{tmp_path}"}, train={"supervision": "labels", "labels_from": "land"})
    found = training_tiles(source(tiles), settings)
    assert dict(zip(found["tile_id"].to_pylist(), found["label"].to_pylist(), strict=True)) == {tile: given[tile] for tile in trained[:5]}
    assert isinstance(supervise(settings, ground_of(found, settings)), ByLabel)
    keep_labels(settings)
    labels.append([said("anna", trained[10], "water")])
    keep_labels(settings)
    assert training_tiles(source(tiles), settings).equals(found), "a run goes on with the labels that it began with"
    fresh = experiment(workspace={"uri": f"file:{tmp_path}", "run": "later"}, train={"supervision": "labels", "labels_from": "land"})
    assert training_tiles(source(tiles), fresh).num_rows == 6


@pytest.mark.parametrize("loss", ["triplet", "cross_entropy"])
def test_patience_looks_at_the_labels_of_people_and_is_refused_where_they_tell_nothing(tmp_path, loss):
    store = open_store(f"file:{tmp_path}")
    land(store)
    tiles = table()
    splits = pc.replace_with_mask(tiles["split"].combine_chunks(), pc.equal(tiles["split"].combine_chunks(), "test"), pa.scalar("val"))
    tiles = tiles.set_column(tiles.column_names.index("split"), SCHEMA.field("split"), splits)
    trained, held_out = (sorted(row["tile_id"] for row in tiles.to_pylist() if row["split"] == split) for split in ("train", "val"))
    labels = LabelStore(store, "land")
    labels.append([said("anna", tile, name) for tile, name in zip(trained, ["field", "field", "water", "water"], strict=False)])
    settings = experiment(
        workspace={"uri": f"file:{tmp_path}"}, loss={"kind": loss}, miner={"kind": "none"},
        train={"supervision": "labels", "labels_from": "land", "patience": 1},
    )  # fmt: skip
    ground = ground_of(training_tiles(source(tiles), settings), settings)
    with pytest.raises(ConfigError, match="none of 30 val tiles is among the 4 labels"):
        check_patience(settings, source(tiles), ground, watched=False)
    given = dict(zip(held_out, ["field", "field", "forest", "forest"], strict=False))
    labels.append([said("anna", tile, name) for tile, name in given.items()])
    found = held_out_tiles(source(tiles), settings)
    assert dict(zip(found["tile_id"].to_pylist(), found["label"].to_pylist(), strict=True)) == given
    if loss == "cross_entropy":  # forest did not train: one class is left
        with pytest.raises(ConfigError, match="labels of 1 classes"):
            check_patience(settings, source(tiles), ground, watched=False)
        labels.append([said("anna", tile, "water") for tile in held_out[4:6]])
    check_patience(settings, source(tiles), ground, watched=False)
    with pytest.raises(ConfigError, match="val split, which has no tile"):
        held_out_tiles(source(table()), settings)


def test_labels_of_people_that_are_of_other_tiles_or_asked_for_by_nothing_are_refused(tmp_path):
    store = open_store(f"file:{tmp_path}")
    land(store)
    LabelStore(store, "land").append([said("anna", "elsewhere", "field")])
    settings = experiment(workspace={"uri": f"file:{tmp_path}"}, train={"supervision": "labels", "labels_from": "land"})
    with pytest.raises(TrainingError, match="none of 270 training tiles is among the 1 labels"):
        training_tiles(source(table()), settings)
    with pytest.raises(ConfigError, match="set supervision: labels"):
        experiment(train={"labels_from": "land"})
