"""The planner, over segments that are compressed and others that are not, beside brute force over all vectors in float64."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs import geo
from rayjobs.errors import QueryError
from rayjobs.geo import BBox
from rayjobs.retrieval import planner, search
from rayjobs.retrieval.filters import SearchFilter
from rayjobs.retrieval.kinds import KINDS, Effort
from rayjobs.retrieval.manifest import IndexManifest
from rayjobs.retrieval.planner import widened
from rayjobs.retrieval.search import Searcher
from rayjobs.retrieval.segments import build_segment, load_segment, load_table
from rayjobs.retrieval.shards import LocalShards
from rayjobs.storage import Artefact, open_store

DIM, COUNT = 16, 3000


def vectors_of(count, seed):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(12, DIM))
    vectors = centres[rng.integers(0, 12, count)] + 0.5 * rng.normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS = vectors_of(COUNT, 0)
VECTORS[2000:2040] = VECTORS[100]  # ties: 41 tiles with one vector
LON, LAT = np.random.default_rng(1).uniform(-180, 179, COUNT), np.random.default_rng(2).uniform(-60, 60, COUNT)
LABELS = np.random.default_rng(3).integers(0, 4, COUNT)
IDS = [f"{(row * 7919) % COUNT:06d}" for row in range(COUNT)]
"""Not in the order of rows: ties go by id, over all segments."""


def build(folder, kind, per_segment):
    """Load an index of several segments; return the searcher, and the row of `VECTORS` that each of its rows holds."""
    quantiser = KINDS[kind].dumped(KINDS[kind].trained(VECTORS)) if KINDS[kind].trains else None
    draft = Artefact(open_store(f"file:{folder}"), "indexes", "test").draft("v1")
    entries, held = [], []
    for number, start in enumerate(range(0, COUNT, per_segment)):
        rows = np.array(sorted(range(start, min(COUNT, start + per_segment)), key=lambda row: IDS[row]))
        table = pa.table(
            {
                "tile_id": [IDS[row] for row in rows],
                "geometry": pa.array(shapely.to_wkb(shapely.box(LON[rows], LAT[rows], LON[rows] + 0.5, LAT[rows] + 0.5)), pa.binary()),
                "datetime": pa.nulls(len(rows), pa.timestamp("us", tz="UTC")),
                "label": [f"label-{LABELS[row]}" for row in rows],
            }
        )
        entry, files = build_segment(f"segment-{number:05d}", VECTORS[rows], table, kind=kind, quantiser=quantiser)
        for name, data in files.items():
            draft.write(name, data)
        entries.append(entry)
        held.append(rows)
    manifest = IndexManifest(
        encoder_uri="encoder", encoder_fingerprint="0" * 64, distance="cosine", dimension=DIM, kind=kind, why="a test",
        effort=Effort(), recall=None, quantiser=None if quantiser is None else "0" * 64, segments=tuple(entries), deleted=0,
    )  # fmt: skip
    version = draft.publish({"parents": {}, "counts": {}, **manifest.fields()})
    segments = [load_segment(version, entry, manifest, folder) for entry in entries]
    tables = [load_table(version, entry, folder) for entry in entries]
    return Searcher(LocalShards(segments, effort=Effort(nprobe=4, ef=32, k_factor=8)), tables), np.concatenate(held)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    return build(tmp_path_factory.mktemp("flat"), "flat", 700)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    return build(tmp_path_factory.mktemp("ivf_pq"), "ivf_pq", 1500)


@pytest.fixture
def few(monkeypatch):
    """Small enough for a test: filters that leave more than 50 tiles are worth approximating."""
    monkeypatch.setattr(planner, "FEW_ROWS", 50)
    monkeypatch.setattr(planner, "FEW_SHARE", 0.0)
    monkeypatch.setattr(planner, "DEEP_SHARE", 0.5)


def ranked(query, passing):
    """Rows of `VECTORS` that pass, best first, ties by id."""
    scores = np.round(VECTORS[passing].astype(np.float64) @ query.astype(np.float64), 9)
    return passing[np.lexsort((np.array(IDS)[passing], -scores))].tolist()


def found(world, hits):
    return world[1][hits.rows].tolist()


def test_ties_go_by_id_over_all_segments(exact):
    for limit in (1, 5, 30, 60):
        hits = exact[0].search(VECTORS[100], limit)
        assert found(exact, hits) == ranked(VECTORS[100], np.arange(COUNT))[:limit]
    ids = [exact[0].describe([row])[0]["tile_id"] for row in exact[0].search(VECTORS[100], 41).rows]
    assert ids == sorted(IDS[row] for row in (100, *range(2000, 2040)))


@settings(max_examples=40, deadline=None)
@given(query=st.integers(0, COUNT - 1), limit=st.integers(1, 40), offset=st.integers(0, 60), threshold=st.none() | st.floats(-1, 1))
def test_an_offset_and_a_threshold_cut_the_ranking(exact, query, limit, offset, threshold):
    hits = exact[0].search(VECTORS[query], limit, offset=offset, threshold=threshold)
    wanted = ranked(VECTORS[query], np.arange(COUNT))[offset : offset + limit]
    if threshold is not None:
        wanted = [row for row in wanted if np.float32(VECTORS[row] @ VECTORS[query]) >= threshold + 1e-6]
        assert (hits.scores >= threshold).all()
        assert len(hits.rows) - len(wanted) <= 1  # one that lies on the threshold to the last bit
    assert found(exact, hits)[: len(wanted)] == wanted


def test_a_batch_gives_what_its_queries_give_alone(exact, compressed):
    queries, without = vectors_of(9, 5), [(), (IDS[0],), (IDS[3], IDS[4], IDS[3], "none"), *[()] * 6]
    only = SearchFilter(bbox=BBox(-170, -50, 100, 50))
    together = exact[0].search_batch(queries, 7, only=only, without=without)
    for number, hits in enumerate(together):
        alone = exact[0].search(queries[number], 7, only=only, without=without[number])
        assert hits.rows.tolist() == alone.rows.tolist()
        assert hits.scores.tolist() == alone.scores.tolist()
        assert hits.candidates == alone.candidates
    assert [hits.candidates - together[0].candidates for hits in together[1:3]] == [
        -sum(LON[row] + 0.5 >= -170 and LON[row] <= 100 and LAT[row] + 0.5 >= -50 and LAT[row] <= 50 for row in rows)
        for rows in ([0], [3, 4])
    ]
    assert compressed[0].search_batch(queries, 3)[4].rows.shape == (3,)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1e4, 3e5, 1e6, 4e6, 2.1e7]), limit=st.integers(1, 60), offset=st.integers(0, 5))
def test_hits_that_lie_apart_are_those_of_one_greedy_pass(exact, seed, spread, limit, offset):
    query = vectors_of(1, seed)[0]
    middles = np.column_stack([geo.wrapped(LON + 0.25), LAT + 0.25])
    wanted: list[int] = []
    for row in ranked(query, np.arange(COUNT)):
        if not wanted or geo.great_circle_m(middles[wanted], middles[row]).min() >= spread:
            wanted.append(row)
        if len(wanted) == offset + limit:
            break
    hits = exact[0].search(query, limit, offset=offset, spread_m=spread)
    assert found(exact, hits) == wanted[offset : offset + limit]
    assert (hits.exact, hits.candidates) == (True, COUNT)


def test_ten_hits_are_ten_places_even_where_a_thousand_alike_lie_side_by_side(exact, monkeypatch):
    monkeypatch.setattr(search, "_LEAST_ROUND", 2)
    hits = exact[0].search(VECTORS[100], 10, spread_m=2e6)
    middles = exact[0].middles(hits.rows)
    apart = [geo.great_circle_m(middles[:one], middles[one]).min() for one in range(1, 10)]
    assert min(apart) >= 2e6


@pytest.mark.usefixtures("few")
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    limit=st.integers(1, 80),
    labels=st.sets(st.integers(0, 3), max_size=3),
    west=st.floats(-180, 180),
    width=st.floats(1, 359),
)
def test_approximate_answers_are_never_short_and_exact_ones_are(compressed, seed, limit, labels, west, width):
    east = west + width if west + width <= 180 else west + width - 360
    inside = np.any([(LON + turn <= west + width) & (LON + 0.5 + turn >= west) for turn in (-360, 0, 360)], axis=0)
    passing = np.flatnonzero(inside & (np.isin(LABELS, list(labels)) if labels else True))
    query = vectors_of(1, seed)[0]
    only = SearchFilter(bbox=BBox(west, -90, east, 90), labels=tuple(f"label-{label}" for label in labels))
    hits = compressed[0].search(query, limit, only=only)
    assert hits.candidates == len(passing)
    assert len(hits.rows) == len(set(hits.rows.tolist())) == min(limit, len(passing))
    assert set(found(compressed, hits)) <= set(passing.tolist())
    assert (np.diff(hits.scores) <= 0).all()
    if hits.exact:
        assert found(compressed, hits) == ranked(query, passing)[:limit]
    forced = compressed[0].search(query, limit, only=only, exact=True)
    assert forced.exact
    assert found(compressed, forced) == ranked(query, passing)[:limit]


@pytest.mark.usefixtures("few")
def test_recall_holds_where_filters_narrow(compressed):
    right = total = approximate = 0
    for number, query in enumerate(vectors_of(60, 8)):
        only = SearchFilter(labels=(f"label-{number % 4}",))
        hits = compressed[0].search(query, 10, only=only)
        approximate += not hits.exact
        right += len(set(found(compressed, hits)) & set(ranked(query, np.flatnonzero(number % 4 == LABELS))[:10]))
        total += 10
    assert approximate > 30
    assert right / total > 0.95


@pytest.mark.usefixtures("few")
def test_an_approximate_search_that_finds_too_few_is_made_again_exactly(compressed, monkeypatch):
    searcher = compressed[0]
    asked = []

    def nothing(self, queries, count, chosen, effort):
        asked.append(effort)
        return np.full((len(queries), count), -np.inf, np.float32), np.full((len(queries), count), -1)

    monkeypatch.setattr(type(searcher.shards.segments[0]), "approximate", nothing)
    hits = searcher.search(VECTORS[5], 10, only=SearchFilter(labels=("label-1",)))
    assert asked
    assert hits.exact
    assert found(compressed, hits) == ranked(VECTORS[5], np.flatnonzero(LABELS == 1))[:10]


def test_effort_widens_as_the_filter_narrows_and_never_below_what_was_tuned():
    effort = Effort(nprobe=4, k_factor=8)
    assert widened(effort, 1.0, 10) == widened(effort, 1.0, 1) == effort
    shares = [widened(effort, share, 10).nprobe for share in (1.0, 0.5, 0.1, 0.02)]
    assert shares == sorted(shares)
    assert shares[-1] > 4
    assert widened(effort, 1.0, 100).nprobe > 4
    assert widened(effort, 1.0, 100).k_factor == 8  # it counts per hit
    assert widened(effort, 0.1, 10).k_factor > 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"spread_m": 0.0}, "spread_m 0.0 must be"),
        ({"spread_m": float("nan")}, "spread_m nan must be"),
        ({"offset": -1}, "offset -1"),
        ({"only": SearchFilter(intersects=shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)]))}, "not valid"),
    ],
)
def test_what_cannot_be_asked_is_refused(exact, arguments, words):
    with pytest.raises(QueryError, match=words):
        exact[0].search(VECTORS[0], 1, **arguments)


def test_a_deleted_tile_is_no_candidate(exact):
    searcher = Searcher(exact[0].shards, exact[0].tables, tombstones=[IDS[100], IDS[2007], "none"])
    assert searcher.rows == COUNT - 2
    hits = searcher.search(VECTORS[100], 45)
    assert hits.candidates == COUNT - 2
    assert not {100, 2007} & set(exact[1][hits.rows].tolist())
    assert searcher.search(VECTORS[100], 3, without=[IDS[100]]).candidates == COUNT - 2
