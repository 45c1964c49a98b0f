"""Great-circle distances of what is found, against the law of cosines and a naive loop."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from rayjobs import config
from rayjobs.evaluate.distances import by_chance_km, mean_distances_km
from rayjobs.evaluate.measure import measure, plan
from rayjobs.evaluate.report import shown, table, values_of
from rayjobs.evaluate.section import EvaluateSection
from rayjobs.geo import Grid
from rayjobs.rasters.scenes import Asset, Scene, Spot
from rayjobs.tiles.positions import spots
from rayjobs.tiles.section import SplitsSection, TilesSection
from rayjobs.tiles.table import plan_tiles
from tests.unit.evaluate.test_evaluate_relevance import asked, scene, tiles

MARS_KM = 3389.5
SETTINGS = config.build(EvaluateSection, {"relevance": "label", "objective": "MAP@R", "ks": [1, 4, 64], "resamples": 100, "probes": []})


def picture(name, spot, label="x"):
    grid = Grid(crs=None, transform=(1, 0, 0, 0, 1, 0), height=8, width=8)
    return Scene(scene_id=name, assets={"red": Asset(uri="x.jpg")}, grid=grid, block=(8, 8), dtype="uint8", spot=spot, label=label)


def on_mars(lonlat, radius_km=MARS_KM):
    scenes = [
        picture(f"{number:03}", None if np.isnan(lon) else Spot(lon=lon, lat=lat, radius_m=1000 * radius_km), label="xy"[number % 2])
        for number, (lon, lat) in enumerate(np.asarray(lonlat, float).tolist())
    ]
    return plan_tiles(scenes, TilesSection(size=None, splits=SplitsSection(train=0, val=0, test=1)))


def cosine_law_km(one, other, radius_km=MARS_KM):
    (lon_a, lat_a), (lon_b, lat_b) = (map(math.radians, place) for place in (one, other))
    cosine = math.sin(lat_a) * math.sin(lat_b) + math.cos(lat_a) * math.cos(lat_b) * math.cos(lon_a - lon_b)
    return radius_km * math.acos(min(1.0, max(-1.0, cosine)))


def everywhere(count, seed=0):
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.uniform(-180, 180, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))])


def test_the_known_distance_on_mars():
    found = spots(on_mars([(-231 + 360, -14), (-271 + 360, 77)]))
    assert found.apart_m(np.array([0]), np.array([1]))[0] / 1000 == pytest.approx(5556.64, abs=0.005)


def test_georeferenced_tiles_are_as_far_apart_as_the_ground_says():
    table = tiles(scene("a"))
    found, count = spots(table), table.num_rows
    first, second = np.divmod(np.arange(count**2), count)
    apart = found.apart_m(first, second) / 1000
    expected = [cosine_law_km(found.lonlat[one], found.lonlat[other], 6371.0088) for one, other in zip(first, second, strict=True)]
    assert apart == pytest.approx(expected, rel=2e-3, abs=0.2)
    assert apart.max() > 1


def test_georeferenced_tiles_lie_at_the_middle_of_their_footprints():
    table = tiles(scene("a"), scene("b", crs=None))
    found, plain = spots(table), np.array(table["crs"].to_pylist()) == None  # noqa: E711  elementwise
    assert np.isnan(found.lonlat[plain]).all()
    assert found.lonlat[~plain] == pytest.approx(np.tile([177, -17], (36, 1)), abs=0.1)
    assert found.radius_m[~plain] == pytest.approx(np.full(36, 6_371_008.8))


def test_tiles_of_two_bodies_have_no_distance():
    found = spots(
        plan_tiles(
            [picture("a", Spot(lon=0, lat=0, radius_m=1.0)), picture("b", Spot(lon=0, lat=0, radius_m=2.0))],
            TilesSection(size=None, splits=SplitsSection(train=0, val=0, test=1)),
        )
    )
    assert np.isnan(found.apart_m(np.array([0]), np.array([1])))


def test_mean_distances_are_those_of_a_naive_loop():
    lonlat = everywhere(30)
    lonlat[[3, 11]] = np.nan  # two lie nobody knows where: they neither ask nor count
    table, rng = on_mars(lonlat), np.random.default_rng(1)
    question = asked(table, relevance="label")
    vectors = rng.normal(size=(30, 4)).astype(np.float32)
    known, found = mean_distances_km(vectors, "euclidean", question, (1, 4, 64))
    where = dict(zip((f"{number:03}" for number in range(30)), lonlat.tolist(), strict=True))
    at = [where[name] for name in table["scene_id"].to_pylist()]
    for position, query in enumerate(known.tolist()):
        order = sorted(
            (tile for tile in range(30) if tile != query), key=lambda tile, query=query: math.dist(vectors[query], vectors[tile])
        )
        for k, values in found.items():
            wanted = [cosine_law_km(at[query], at[tile]) for tile in order[:k] if not math.isnan(at[tile][0])]
            assert values[position] == pytest.approx(sum(wanted) / len(wanted), abs=1e-6)
    nowhere = {query for query in range(30) if math.isnan(at[query][0])}
    assert not nowhere & set(known.tolist())
    assert len(known) >= 26  # one whose nearest lies nowhere has no mean at 1


def test_random_pairs_lie_a_quarter_of_a_great_circle_apart():
    question = asked(on_mars(everywhere(400)), relevance="label")
    assert by_chance_km(question) == pytest.approx(math.pi / 2 * MARS_KM, rel=0.02)  # 5324 km


def test_a_report_has_the_distances_of_every_row():
    question = asked(on_mars(everywhere(40)), relevance="label")
    near = np.array(
        [
            [
                math.cos(math.radians(lon)) * math.cos(math.radians(lat)),
                math.sin(math.radians(lon)) * math.cos(math.radians(lat)),
                math.sin(math.radians(lat)),
            ]
            for lon, lat in question.spots.lonlat.tolist()
        ],
        np.float32,
    )
    rows = {"random-init": np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32), "trained": near}
    found = plan(question, SETTINGS)
    report = table(
        [measure(name, vectors, "euclidean", question, found, SETTINGS) for name, vectors in rows.items()], SETTINGS, ours="trained"
    )
    distances = report["distances"]
    assert list(distances["rows"]["trained"]) == ["distance_km@1", "distance_km@4", "distance_km@64"]
    assert distances["rows"]["trained"]["distance_km@1"]["high"] < distances["rows"]["random-init"]["distance_km@1"]["low"]
    assert distances["rows"]["random-init"]["distance_km@64"]["value"] == pytest.approx(distances["random_pairs"], rel=0.1)
    assert values_of(report)["trained/distance_km@4"] == distances["rows"]["trained"]["distance_km@4"]["value"]
    assert any("km" in line for line in shown(report))


def test_tiles_that_lie_nowhere_have_no_distances():
    question = asked(on_mars(np.full((12, 2), np.nan)), relevance="label")
    vectors = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    for of in (question, dataclasses.replace(question, spots=None)):
        assert (
            table([measure("trained", vectors, "euclidean", of, plan(of, SETTINGS), SETTINGS)], SETTINGS, ours="trained")["distances"]
            is None
        )
        assert by_chance_km(of) is None
