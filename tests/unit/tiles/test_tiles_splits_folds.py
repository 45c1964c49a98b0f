"""Groups dealt out to folds: by observation, class, scene and block of ground; and pictures of one place."""

from __future__ import annotations

import datetime
from collections import Counter, defaultdict

import numpy as np
import pytest

from rayjobs import geo
from rayjobs.errors import ConfigError, NoTilesError
from rayjobs.rasters.scenes import Asset, Scene
from rayjobs.tiles.neighbours import outlines, overlapping_pairs
from rayjobs.tiles.places import across_dates, dates
from rayjobs.tiles.positions import positions, sizes
from rayjobs.tiles.section import GridSampler, SplitsSection, TilesSection
from rayjobs.tiles.splits import dealt
from rayjobs.tiles.table import plan_tiles

SIZES = (60, 57, 40, 36, 34, 30, *[9] * 30, *[3] * 34)
"""Pictures of the observations, about as unequal as those of the HiRISE landmarks."""


def picture(name, **told):
    grid = geo.Grid(crs=None, transform=(1, 0, 0, 0, 1, 0), height=32, width=32)
    return Scene(scene_id=name, assets={"red": Asset(uri="x.jpg")}, grid=grid, block=(32, 32), dtype="uint8", **told)


def planned(scenes, size=None, **splits):
    return plan_tiles(scenes, TilesSection(size=size, sampler=GridSampler(), splits=SplitsSection(**splits))).to_pylist()


OBSERVED = [picture(f"{number}-{part}", observation=f"O{number}") for number, size in enumerate(SIZES) for part in range(size)]


def test_every_observation_is_tested_in_one_fold_and_folds_are_balanced():
    tested, sizes = Counter(), []
    for fold in range(5):
        rows = planned(OBSERVED, by="observation", folds=5, fold=fold)
        of_observation = defaultdict(set)
        for row in rows:
            of_observation[row["observation"]].add(row["split"])
        assert all(len(splits) == 1 for splits in of_observation.values())
        assert [row["block_id"] for row in rows] == [row["observation"] for row in rows]
        tested.update(row["tile_id"] for row in rows if row["split"] == "test")
        sizes.append(Counter(row["split"] for row in rows))
    assert len(tested) == len(OBSERVED)
    assert set(tested.values()) == {1}
    assert max(size["test"] for size in sizes) - min(size["test"] for size in sizes) <= 3
    assert [size["val"] for size in sizes] == [sizes[(fold + 1) % 5]["test"] for fold in range(5)], "the next fold is for validation"


def test_the_seed_and_nothing_else_decides_who_goes_where():
    def folds(scenes, seed):
        return {row["scene_id"]: row["split"] for row in planned(scenes, by="observation", folds=5, seed=seed)}

    assert folds(OBSERVED, 0) == folds(OBSERVED[::-1], 0)
    assert folds(OBSERVED, 0) != folds(OBSERVED, 1)


def naive(weights, folds):
    """Loads that dealing the largest first to the emptiest gives."""
    loads = [0] * folds
    for weight in sorted(weights, reverse=True):
        loads[loads.index(min(loads))] += weight
    return sorted(loads)


@pytest.mark.parametrize("seed", range(5))
def test_dealing_gives_the_loads_of_the_largest_first(seed):
    weights = {f"g{number}": int(size) for number, size in enumerate(np.random.default_rng(seed).integers(1, 40, 25))}
    loads = []
    for fold in range(4):
        of_group = dealt(weights, SplitsSection(folds=4, fold=fold, seed=seed))
        loads.append(sum(weights[name] for name, split in of_group.items() if split == 2))
    assert sorted(loads) == naive(weights.values(), 4)


def test_folds_of_classes_and_scenes():
    scenes = [picture(f"{label}{number}", label=label) for label in "abcdef" for number in range(4)]
    by_class = planned(scenes, by="class", folds=3)
    assert all(len({row["split"] for row in by_class if row["label"] == label}) == 1 for label in "abcdef")
    for rows in (by_class, planned(scenes, by="scene", folds=3), planned(scenes, folds=3)):
        assert Counter(row["split"] for row in rows) == {"train": 8, "val": 8, "test": 8}


def test_folds_of_ground_share_none_and_are_balanced():
    grid = geo.Grid(crs="EPSG:32612", transform=(30, 0, 500_000, 0, -30, 4_100_000), height=1200, width=1200)
    scene = Scene(scene_id="s", assets={"red": Asset(uri="x.tif")}, grid=grid, block=(64, 64), dtype="uint8")
    everything, counts = set(), []
    for fold in range(5):
        rows = planned([scene], size=16, block_m=4000, folds=5, fold=fold)
        tested = {row["tile_id"] for row in rows if row["split"] == "test"}
        assert not tested & everything
        everything |= tested
        counts.append(len(tested))
        blocks = defaultdict(set)
        for row in rows:
            if row["split"]:
                blocks[row["block_id"]].add(row["split"])
        assert all(len(splits) == 1 for splits in blocks.values())
    assert max(counts) < 1.15 * min(counts)


def test_pictures_without_an_observation_are_named():
    with pytest.raises(ConfigError, match=r"the observation of b is not known .* csv_observation_column"):
        planned([picture("a", observation="O"), picture("b")], by="observation")


def test_fewer_observations_than_folds_say_what_to_lower():
    with pytest.raises(NoTilesError, match=r"lie in 2 observations.*lower tiles\.splits\.folds"):
        planned([picture("a", observation="O"), picture("b", observation="P")], by="observation", folds=3)


@pytest.mark.parametrize(("keys", "words"), [({"folds": 5, "fold": 5}, "no fold 5 of 5"), ({"fold": 1}, "no fold 1 of none")])
def test_folds_that_are_not_there_are_refused(keys, words):
    with pytest.raises(ValueError, match=words):
        SplitsSection(**keys)


def of_two_years(size=None):
    days = [datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (2004, 2019)]
    scenes = [picture(f"{day.year}/{place}", place=f"p{place}", datetime=day) for place in range(40) for day in days]
    return plan_tiles(scenes, TilesSection(size=size, sampler=GridSampler(), splits=SplitsSection()))


@pytest.mark.parametrize("size", [None, 16])
def test_pictures_of_one_place_have_one_place_id_split_and_frame(size):
    tiles = of_two_years(size)
    of_place = defaultdict(list)
    for row in tiles.to_pylist():
        of_place[row["place"], row["row"], row["col"]].append(row)
    for pair in of_place.values():
        assert [len({row[key] for row in pair}) for key in ("place_id", "split", "block_id", "tile_id")] == [1, 1, 1, 2]
    assert len({row["place_id"] for row in tiles.to_pylist()}) == len(of_place)
    found = across_dates(positions(tiles), sizes(tiles), dates(tiles), 0.25)
    names = np.array(tiles["place_id"].to_pylist())
    assert len(found) == len(of_place)
    assert (names[found[:, 0]] == names[found[:, 1]]).all()
    assert overlapping_pairs(outlines(tiles)).tolist() == found.tolist(), "they share the ground that they show"


def dated(year, crs="EPSG:26914"):
    grid = geo.Grid(crs=crs, transform=(5.0, 0, 500_000, 0, -5.0, 5_000_000), height=128, width=128)
    day = None if year is None else datetime.datetime(year, 6, 1, tzinfo=datetime.UTC)
    return Scene(scene_id=f"s{year}", assets={"red": Asset(uri="x.tif")}, grid=grid, block=(64, 64), dtype="uint8", datetime=day)


def test_dates_are_divided_whole_though_their_ground_is_the_same():
    scenes = [dated(year) for year in (2010, 2012, 2015, 2018)]
    tested = set()
    for fold in range(4):
        rows = planned(scenes, size=32, by="date", folds=4, fold=fold)
        of_date = {row["block_id"]: row["split"] for row in rows}
        assert len(rows) == 64
        assert sorted(of_date.values()) == ["test", "train", "train", "val"]
        assert {(row["block_id"], row["split"]) for row in rows} == set(of_date.items())
        tested |= {date for date, split in of_date.items() if split == "test"}
    assert tested == {"2010-06-01", "2012-06-01", "2015-06-01", "2018-06-01"}


def test_dates_that_are_not_known_or_too_few_are_said():
    with pytest.raises(ConfigError, match=r"splits\.by is date, and that of sNone is not known; give the source a `datetime`"):
        planned([dated(2010), dated(None)], size=32, by="date")
    with pytest.raises(NoTilesError, match=r"splits\.folds to their number"):
        planned([dated(2010), dated(2012)], size=32, by="date")
