"""Splits that share no class: whole numbers of classes by largest remainder, in a seeded order."""

from __future__ import annotations

import pyproj
import pytest

from rayjobs import geo
from rayjobs.errors import ConfigError, NoTilesError
from rayjobs.rasters.scenes import Asset, Scene
from rayjobs.tiles.section import SplitsSection, TilesSection
from rayjobs.tiles.splits import class_splits
from rayjobs.tiles.table import plan_tiles

CLASSES = [f"class {letter}" for letter in "abcdefghijklmno"]


def picture(name: str, label: str | None, crs: str | None = None, *, east: float = 0.0) -> Scene:
    """A picture of 32 px, without coordinates or somewhere in Utah."""
    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32612", always_xy=True).transform(-111, 37) if crs else (0.0, 0.0)
    grid = geo.Grid(crs=crs, transform=(30, 0, x + east, 0, -30, y), height=32, width=32)
    return Scene(scene_id=name, assets={"red": Asset(uri="x.jpg")}, grid=grid, block=(32, 32), dtype="uint8", label=label)


def section(train: float, val: float, test: float, seed: int = 0) -> SplitsSection:
    return SplitsSection(train=train, val=val, test=test, by="class", seed=seed)


def counted(classes: int, *shares: float) -> list[int]:
    found = list(class_splits([str(number) for number in range(classes)], section(*shares)).values())
    return [found.count(split) for split in range(3)]


@pytest.mark.parametrize(
    ("classes", "shares", "expected"),
    [
        (15, (8 / 15, 0, 7 / 15), [8, 0, 7]),
        (15, (0.533333, 0, 0.466667), [8, 0, 7]),
        (15, (0.53333333, 0.2, 0.26666667), [8, 3, 4]),
        (15, (0.5, 0, 0.5), [8, 0, 7]),
        (10, (0.6, 0.2, 0.2), [6, 2, 2]),
        (7, (0.6, 0.2, 0.2), [4, 2, 1]),
        (3, (0.6, 0.2, 0.2), [2, 1, 0]),
        (5, (1, 0, 0), [5, 0, 0]),
    ],
)
def test_shares_are_whole_numbers_of_classes_by_largest_remainder(classes, shares, expected):
    assert counted(classes, *shares) == expected


def test_the_seed_alone_decides_which_classes():
    first = class_splits(CLASSES, section(8 / 15, 0, 7 / 15))
    assert class_splits(reversed(CLASSES), section(8 / 15, 0, 7 / 15)) == first
    trained = {
        frozenset(name for name, split in class_splits(CLASSES, section(8 / 15, 0, 7 / 15, seed)).items() if split == 0)
        for seed in range(20)
    }
    assert len(trained) == 20
    assert set().union(*trained) == set(CLASSES)


def test_pictures_of_one_class_stay_together():
    scenes = [picture(f"{label}/{number}", label) for label in CLASSES for number in range(4)]
    tiles = plan_tiles(scenes, TilesSection(size=None, splits=section(8 / 15, 0, 7 / 15, seed=3))).to_pylist()
    assert {row["label"]: row["split"] for row in tiles} == {
        label: ("train", "val", "test")[split] for label, split in class_splits(CLASSES, section(8 / 15, 0, 7 / 15, seed=3)).items()
    }
    assert [sum(row["split"] == name for row in tiles) for name in ("train", "val", "test")] == [32, 0, 28]
    assert all(row["block_id"] == row["scene_id"] for row in tiles)


def test_pictures_with_coordinates_share_no_ground_either():
    here = [picture(f"here-{label}", label, "EPSG:32612") for label in "abcdef"]
    away = [picture(f"away-{label}", label, "EPSG:32612", east=1e5 * place) for place, label in enumerate("abcdef", 1)]
    tiles = plan_tiles([*here, *away], TilesSection(size=None, splits=section(0.5, 0, 0.5))).to_pylist()
    found = {kind: {row["split"] for row in tiles if row["scene_id"].startswith(kind)} for kind in ("here", "away")}
    assert found == {"here": {None, "test"}, "away": {"train", "test"}}, "of pictures of one place, those that train give way"


def test_unknown_classes_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"the class of b is not known when the set is planned.*kind images.*tiles\.splits\.by: block or"):
        plan_tiles([picture("a", "water"), picture("b", None)], TilesSection(size=None, splits=section(0.5, 0, 0.5)))


def test_too_few_classes_say_so():
    scenes = [picture(f"{label}{number}", label) for label in "abc" for number in range(9)]
    with pytest.raises(NoTilesError, match=r"no class of 3 belongs to the split test; give those splits a larger share, or 0"):
        plan_tiles(scenes, TilesSection(size=None, splits=section(0.6, 0.2, 0.2)))
