from __future__ import annotations

import dataclasses
import datetime
import typing

import numpy as np
import pyarrow as pa
import pytest

from rayjobs import config
from rayjobs.errors import ConfigError
from rayjobs.evaluate.relevance import ask, findable
from rayjobs.evaluate.report import cautions, cautions_of_lone
from rayjobs.evaluate.section import EvaluateSection
from rayjobs.geo import Grid
from rayjobs.rasters.scenes import Asset, Scene
from rayjobs.tiles.section import GridSampler, SplitsSection, TilesSection
from rayjobs.tiles.table import plan_tiles

CLASSES = ("water", "forest", "crops")


def scene(scene_id, *, crs="EPSG:32760", left=500_000.0, day=None):
    grid = Grid(crs=crs, transform=(30.0, 0, left, 0, -30.0, 8_120_000.0), height=48, width=48)
    return Scene(scene_id=scene_id, assets={"red": Asset(uri="x.tif")}, grid=grid, block=(8, 8), dtype="uint16", datetime=day)


def tiles(*scenes, stride=8, labels=None, fractions=None, coverage=None):
    section = TilesSection(size=8, sampler=GridSampler(stride=stride), splits=SplitsSection(train=0, val=0, test=1, block_m=500))
    table = plan_tiles(scenes or [scene("a"), scene("b", left=600_000.0)], section)
    for name, values in (("label", labels), ("label_fractions", fractions), ("label_coverage", coverage)):
        if values is not None:
            place = table.schema.get_field_index(name)
            column = [values[number % len(values)] for number in range(table.num_rows)]
            table = table.set_column(place, table.schema.field(place), pa.array(column, table.schema.field(place).type))
    return table


def asked(table, *, divided_by="block", classes=CLASSES, coverage=0.0, **settings):
    return ask(table, config.build(EvaluateSection, settings), classes=classes, divided_by=divided_by, min_label_coverage=coverage)


@pytest.mark.parametrize(
    ("unit", "divided_by", "column", "words"),
    [
        ("auto", "block", "block_id", "spatial blocks"),
        ("auto", "scene", "block_id", "scenes"),
        ("block", "block", "block_id", "spatial blocks"),
        ("scene", "block", "scene_id", "scenes"),
        ("class", "block", "label", "classes"),
    ],
)
def test_units_are_those_asked_for(unit, divided_by, column, words):
    table = tiles(labels=CLASSES)
    question = asked(table, divided_by=divided_by, unit=unit)
    assert question.units.tolist() == table[column].to_pylist()
    assert question.unit_means == words
    assert question.ground.tolist() == table["block_id"].to_pylist()


def test_pictures_are_resampled_by_what_they_were_cut_from():
    scenes = [dataclasses.replace(scene(name, crs=None), observation=f"O{number // 2}") for number, name in enumerate("abcd")]
    splits = SplitsSection(train=0, val=0, test=1, by="observation")
    table = plan_tiles(scenes, TilesSection(size=None, splits=splits))
    for question in (asked(table, divided_by="observation"), asked(table, divided_by="scene", unit="observation")):
        assert sorted(question.units) == ["O0", "O0", "O1", "O1"]
        assert question.unit_means == "source observations"
    assert asked(table, divided_by="observation").ground_means == "source observations"


def test_pictures_of_places_are_resampled_by_these():
    scenes = [dataclasses.replace(scene(name, crs=None), place=f"p{number // 2}") for number, name in enumerate("abcd")]
    question = asked(plan_tiles(scenes, TilesSection(size=None, splits=SplitsSection(train=0, val=0, test=1))))
    assert (sorted(question.units), question.unit_means) == (["p0", "p0", "p1", "p1"], "places")


def test_pictures_of_one_place_are_found_across_dates():
    days = [datetime.datetime(year, 6, 1, tzinfo=datetime.UTC) for year in (2004, 2019)]
    scenes = [
        dataclasses.replace(scene(f"{place}-{day.year}", crs=None), place=f"p{place}", datetime=day) for place in range(5) for day in days
    ]
    table = plan_tiles(scenes, TilesSection(size=None, splits=SplitsSection(train=0, val=0, test=1)))
    question = asked(table, relevance="place")
    places = np.array(table["place"].to_pylist())
    relevant = question.relevance.rows(np.arange(len(question.queries)))
    assert relevant.sum(axis=1).tolist() == [1] * 10
    assert (places[relevant.argmax(axis=1)] == places[question.queries]).all()
    assert {(pair.asking, pair.gap_days) for pair in question.dates} == {("2004-06-01", 5478), ("2019-06-01", -5478)}


def test_pictures_have_scenes_for_units_whatever_divides():
    question = asked(tiles(scene("a", crs=None), scene("b", crs=None)))
    assert set(question.units) == {"a", "b"}
    assert question.unit_means == question.ground_means == "scenes"


@pytest.mark.parametrize(
    ("settings", "divided_by", "words"),
    [
        ({"unit": "class"}, "block", "evaluate.unit is class"),
        ({"relevance": "label"}, "block", "evaluate.relevance is label"),
        ({"unit": "block"}, "scene", "evaluate.unit is block"),
        ({"unit": "observation"}, "block", "not every tile has one"),
    ],
)
def test_what_the_tiles_do_not_have_is_refused_by_its_key(settings, divided_by, words):
    with pytest.raises(ConfigError, match=words):
        asked(tiles(), divided_by=divided_by, **settings)


def test_classes_keep_the_order_of_the_set_and_those_that_do_not_occur_have_no_number():
    question = asked(tiles(labels=("crops", None, "water")), relevance="label")
    assert question.classes == ("water", "crops")
    assert question.codes[:3].tolist() == [1, -1, 0]
    assert question.held_classes == CLASSES


def test_proportions_sum_to_one_where_the_map_tells_enough():
    fractions = ([0.2, 0.3, 0.5], [0.5, 0.5, 0.0], None, [0.0, 0.0, 0.0])
    table = tiles(labels=("crops",), fractions=fractions, coverage=(1.0, 0.3, None, 0.9))
    held = asked(table, coverage=0.5).proportions
    np.testing.assert_allclose(held[:4], [[0.2, 0.3, 0.5], [0, 0, 0], [0, 0, 0], [0, 0, 0]], atol=1e-7)
    np.testing.assert_allclose(asked(table, coverage=0.2).proportions[1], [0.5, 0.5, 0])
    assert asked(tiles(labels=CLASSES)).proportions is None
    assert asked(tiles(labels=CLASSES, fractions=([0.0, 0.0, 0.0],), coverage=(1.0,))).proportions is None


def test_tiles_that_can_find_something_are_known_before_anything_is_embedded():
    labels = ["water"] * 3 + [None] + ["forest"] + [None] * 67
    question = asked(tiles(labels=labels), relevance="label")
    assert findable(question).tolist() == [0, 1, 2]


def test_overlapping_tiles_are_no_candidates_and_neighbours_are_the_buffer_of_probes():
    question = asked(tiles(scene("a"), stride=4))
    every = np.arange(len(question.tile_ids))
    out, near = question.excluded.rows(every), question.near.rows(every)
    assert out.diagonal().all()
    assert (near >= out).all()
    assert near.sum() > out.sum() > len(every)


def of_three_observations():
    """Six pictures of two classes: of O0 four, of O1 and O2 one each."""
    names = ["O0", "O0", "O0", "O0", "O1", "O2"]
    scenes = [dataclasses.replace(scene(f"s{number}", crs=None), observation=name) for number, name in enumerate(names)]
    table = plan_tiles(scenes, TilesSection(size=None, splits=SplitsSection(train=0, val=0, test=1, by="observation")))
    labels = pa.array(["water" if number % 2 else "forest" for number in range(table.num_rows)])
    return table.set_column(table.schema.get_field_index("label"), table.schema.field("label"), labels)


def test_pictures_of_the_same_observation_can_be_left_out():
    table = of_three_observations()
    question = asked(table, relevance="label", divided_by="observation", exclude="observation")
    every = np.arange(6)
    names = np.array(table["observation"].to_pylist())
    assert (question.excluded.rows(every) == (names[:, None] == names[None, :])).all()
    alone = asked(table, relevance="label", divided_by="observation")
    assert (alone.excluded.rows(every) == np.eye(6, dtype=bool)).all()
    assert question.excluded_means == f"{alone.excluded_means}, and all others of its observation"


def test_what_lies_in_the_scene_of_a_query_can_be_left_out():
    table = tiles(scene("a"), scene("b"))  # of one ground
    question = asked(table, exclude="scene")
    every = np.arange(table.num_rows)
    scenes, out = np.array(table["scene_id"].to_pylist()), question.excluded.rows(every)
    assert out[scenes[:, None] == scenes[None, :]].all()
    assert (out & (scenes[:, None] != scenes[None, :])).sum() == table.num_rows, "the tile of the other scene on the same ground"


def test_a_query_that_may_count_nothing_is_told_beforehand():
    with pytest.raises(ConfigError, match=r"exclude is scene, and all tiles are of one"):
        asked(tiles(scene("a")), exclude="scene")
    with pytest.raises(ConfigError, match=r"evaluate\.exclude is observation, and not every tile has one"):
        asked(tiles(), exclude="observation")
    with pytest.raises(ConfigError, match=r"exclude: scene; drop it"):
        asked(of_two_dates(), relevance="place", exclude="scene")


def test_classes_none_of_which_asks_are_a_caution():
    labels = ["water"] * 4 + ["forest"] + [None] * 67
    question = asked(tiles(labels=labels), relevance="label")
    assert cautions_of_lone(question, findable(question)) == [
        "68 of 72 queries have nothing to find and are not measured, among them all of class forest: the figures are of the others alone"
    ]
    everybody = asked(tiles(labels=CLASSES), relevance="label")
    assert cautions_of_lone(everybody, findable(everybody)) == []


def of_two_dates():
    """36 tiles on each of two days, the second a little further east and with one column of tiles less; half of them train."""
    days = [datetime.datetime(year, 6, 1, tzinfo=datetime.UTC) for year in (2015, 2018)]
    section = TilesSection(size=8, sampler=GridSampler(), splits=SplitsSection(train=0.5, val=0, test=0.5, block_m=500))
    late = scene("b", left=500_040.0, day=days[1])
    late = dataclasses.replace(late, grid=dataclasses.replace(late.grid, width=40))
    return plan_tiles([scene("a", day=days[0]), late], section)


def test_tiles_of_the_split_ask_the_other_date_for_their_place():
    table = of_two_dates()
    question = asked(table, relevance="place")
    assert len(question.tile_ids) == table.num_rows == 36 + 30
    scenes, splits = (np.array(table[name].to_pylist()) for name in ("scene_id", "split"))
    assert question.queries.tolist() == np.flatnonzero(splits == "test").tolist()
    every = np.arange(len(question.queries))
    relevant, out = question.relevance.rows(every), question.excluded.rows(every)
    assert (out == (scenes[None, :] == scenes[question.queries][:, None])).all(), "its own date is no candidate, its own split is"
    where = np.array([[row, col] for row, col in zip(table["row"].to_pylist(), table["col"].to_pylist(), strict=True)])
    assert (relevant == ((where[None] == where[question.queries][:, None]).all(axis=2) & ~out)).all()
    assert not question.classes


def test_pairs_of_dates_have_their_gap_and_their_gallery():
    question = asked(of_two_dates(), relevance="place")
    there, back = question.dates
    assert (there.asking, there.asked, there.gap_days, there.gallery) == ("2015-06-01", "2018-06-01", 1096, 30)
    assert (back.asking, back.asked, back.gap_days, back.gallery) == ("2018-06-01", "2015-06-01", -1096, 36)
    assert sorted([*there.queries, *back.queries]) == list(range(len(question.queries)))
    assert len(findable(question)) < len(question.queries), "a column of tiles has no like on the other date"


def test_places_of_one_date_are_refused():
    with pytest.raises(ConfigError, match="all tiles are of one date"):
        asked(tiles(scene("a", day=datetime.datetime(2015, 9, 26, tzinfo=datetime.UTC))), relevance="place")


def test_places_of_scenes_without_a_date_are_refused():
    settings = config.build(EvaluateSection, {"relevance": "place"})
    with pytest.raises(ConfigError, match=r"the date of \w+ is not known; give the source a `datetime`"):
        ask(tiles(scene("a"), scene("b")), settings, divided_by="block")


@pytest.mark.parametrize("by", typing.get_args(typing.get_type_hints(SplitsSection)["by"]))
def test_few_units_are_a_caution_however_the_tiles_are_divided(by):
    question = ask(tiles(scene("a")), config.build(EvaluateSection, {}), divided_by=by)
    [caution] = cautions((1,), 100, 2, question.unit_means)
    assert caution.startswith(f"only 2 independent units ({question.unit_means}): ")
