"""The life of an index: what is appended, deleted, merged and taken back answers as an index built anew."""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa
import pytest

from rayjobs.errors import ConfigError, NoTilesError, PublishConflictError
from rayjobs.index.compact import plan
from rayjobs.models.spec import ModelSpec
from rayjobs.retrieval.filters import SearchFilter, columns_to_filter
from rayjobs.retrieval.kinds import KINDS
from rayjobs.retrieval.metadata import common_columns
from tests.unit.index.index_made import DIM, Made, code_of, searcher, tile_id, tile_table, vector_of, write_embeddings
from tests.unit.index.index_made import answers as answers_of

QUERIES = range(0, 200, 17)


@pytest.fixture
def made(tmp_path):
    def open_one(name="one", **settings):
        return Made(f"file:{tmp_path}/{name}", **settings)

    return open_one


def shared(made):
    return [key for key in made.store.list(made.index.prefix) if "/shared/" in key]


@pytest.fixture
def codes(monkeypatch):
    """The encoder of the embeddings gives codes."""
    monkeypatch.setattr(ModelSpec, "gives_codes", True)


@pytest.mark.usefixtures("codes")
@pytest.mark.parametrize("kind", KINDS)
def test_append_delete_and_compact_answer_as_an_index_built_anew(made, kind, tmp_path):
    lived, anew = made("lived", kind=kind), made("anew", kind=kind)
    lived.build(range(150))
    lived.append(range(240))
    gone = [number for number in range(240) if number % 4 == 1]
    lived.delete(gone)
    left = [number for number in range(240) if number % 4 != 1]
    answers = functools.partial(answers_of, vector=lived.vector_of)
    expected = answers(anew.build(left), QUERIES, tmp_path, exact=True)
    before = lived.current()
    assert answers(before, QUERIES, tmp_path, exact=True) == expected
    compacted = lived.compact()
    assert (compacted.manifest.stored, compacted.manifest.deleted, compacted.tombstones) == (len(left), 0, ())
    assert answers(compacted, QUERIES, tmp_path, exact=True) == expected
    # and as the kind searches by itself: whatever is answered is not deleted, and as many as asked for
    for published in (before, compacted):
        for ids, scores in answers(published, QUERIES, tmp_path):
            assert not {tile_id(number) for number in gone} & set(ids)
            assert len(ids) == len(scores) == 7


def test_appending_writes_no_segment_twice_and_embeds_only_what_is_new(made):
    index = made()
    first = index.build(range(100))
    before = set(shared(index))
    second = index.append(range(150))
    assert before < set(shared(index))
    assert [segment.name for segment in second.manifest.segments] == ["segment-00000", "segment-00001", "segment-00002"]
    assert [first.version.key(f"segment-00000.{ending}") for ending in ("vectors", "parquet")] == [
        second.version.key(f"segment-00000.{ending}") for ending in ("vectors", "parquet")
    ]
    assert second.manifest.segments[-1].rows == 50
    assert searcher(second).rows == 150
    assert second.version.manifest["parents"]["index"] == first.version.version
    assert second.version.manifest["build"] == first.version.manifest["build"] == first.version.version


def test_deleting_writes_no_segment(made, tmp_path):
    index = made(kind="ivf_flat")
    index.build(range(100))
    before = shared(index)
    published = index.delete([3, 5])
    assert shared(index) == before
    assert published.tombstones == tuple(sorted(map(tile_id, (3, 5))))
    assert searcher(published, tmp_path).rows == 98
    again = index.delete([5, 7])
    assert again.manifest.deleted == 3


def test_deleted_tiles_stay_out_before_and_after_compaction(made):
    index = made()
    index.build(range(100))
    index.delete(range(10))
    index.append(range(120))
    assert searcher(index.current()).rows == 110
    index.compact()
    assert index.current().removed == tuple(sorted(map(tile_id, range(10))))
    index.append(range(130))
    assert searcher(index.current()).rows == 120
    index.delete(range(50, 60))
    index.compact()
    assert len(index.current().removed) == 20


def test_an_append_may_know_more_or_less_of_its_tiles(made, tmp_path):
    index = made(rows_per_segment=100)
    index.build(range(40))

    def other(table):
        return table.drop_columns(["label", "split"]).append_column("cloud", pa.array([3] * len(table)))

    index.append(range(80), change=other)
    for published in (index.current(), index.compact()):
        opened = searcher(published, tmp_path)
        known = {row["tile_id"]: row.get("cloud") for row in opened.describe(opened.all.rows)}
        assert known == {tile_id(number): 3 if number >= 40 else None for number in range(80)}
        assert ("cloud" in columns_to_filter(opened.tables)) == (len(opened.tables) == 1)
        hits = opened.search(vector_of(5), 60, only=SearchFilter(scenes=("scene-000", "scene-005")))
        assert len(opened.take(hits.rows, columns=common_columns(opened.tables))) == 20
    assert len(opened.tables) == 1


def test_compaction_takes_over_what_is_compact(made):
    index = made(rows_per_segment=80)
    index.build(range(160))
    index.append(range(180))
    index.append(range(200))
    index.delete([next(number for number in range(80, 160))])
    names = [segment.name for segment in index.current().manifest.segments]
    assert names == [f"segment-{number:05d}" for number in range(4)]
    planned = plan(index.current(), 80)
    assert [segment.name for segment in planned.kept] == ["segment-00000"]
    assert planned.merged == (("segment-00001",), ("segment-00002", "segment-00003"))
    compacted = index.compact()
    assert [segment.name for segment in compacted.manifest.segments] == ["segment-00000", "segment-00004", "segment-00005"]
    assert [segment.rows for segment in compacted.manifest.segments] == [80, 79, 40]
    assert plan(compacted, 80).is_empty


def test_a_segment_of_which_all_is_deleted_goes(made):
    index = made(rows_per_segment=40)
    index.build(range(80))
    index.delete(range(40))
    assert plan(index.current(), 40).merged == ()
    assert not plan(index.current(), 40).is_empty
    compacted = index.compact()
    assert [segment.name for segment in compacted.manifest.segments] == ["segment-00001"]
    assert compacted.manifest.deleted == 0


def test_of_an_index_of_which_all_is_deleted_nothing_can_be_left(made):
    index = made()
    index.build(range(40))
    index.delete(range(40))
    assert searcher(index.current()).rows == 0
    with pytest.raises(NoTilesError, match="every tile of the index is deleted; `rayjobs index rollback`"):
        index.compact()


def test_who_goes_on_from_an_old_version_does_not_win(made):
    index = made()
    old = index.build(range(100))
    new = index.delete([1])
    for late in (lambda: index.append(range(120), old), lambda: index.delete([2], old), lambda: index.compact(old)):
        with pytest.raises(PublishConflictError, match=f"was changed to {new.version.version}; run the command again"):
            late()
    assert index.current().version.version == new.version.version


def test_the_same_action_again_is_the_same_version(made):
    first, second = made("a"), made("b")
    versions = []
    for index in (first, second):
        index.build(range(100))
        index.append(range(120))
        index.delete([7])
        versions.append(index.compact().version.version)
    assert versions[0] == versions[1]


def test_of_another_recall_an_append_and_a_compaction_are_other_versions(made):
    low, high = made(kind="binary", recall=0.3), made(kind="binary", recall=1.0)
    built = low.build(range(100))
    appended = low.append(range(150))
    compacted = low.compact()
    low.index.go_back(built.version.version)
    assert high.append(range(150)).version.version != appended.version.version
    assert high.current().manifest.effort.k_factor > appended.manifest.effort.k_factor
    low.index.go_back(appended.version.version)
    assert high.compact().version.version != compacted.version.version
    assert high.current().manifest.effort.k_factor > compacted.manifest.effort.k_factor


@pytest.mark.parametrize("kind", ["hnsw", "ivf_pq", "ivf_rabitq"])
def test_effort_and_recall_are_measured_on_what_is_there(made, kind):
    published = made(kind=kind, recall=0.9, rows_per_segment=300).build(range(300))
    estimate = published.manifest.recall
    assert estimate.at == 10
    assert estimate.value >= 0.9
    assert published.manifest.why == f"{kind} was asked for"
    assert (published.manifest.quantiser is None) == (not KINDS[kind].trains)


@pytest.mark.usefixtures("codes")
def test_codes_are_told_from_other_vectors(made, tmp_path):
    """One bit a number is kept, `auto` knows it, and a hit's own vector comes back as it was embedded."""
    index = made(kind="hamming")
    index.build(range(50))
    published = index.append(range(70))
    sizes = {entry.name: entry.size for entry in published.version.files}
    assert sizes["segment-00000.vectors"] - sizes["segment-00001.vectors"] == 30 * DIM // 8
    assert "segment-00000.faiss" not in sizes
    np.testing.assert_array_equal(searcher(published, tmp_path).vector_of(tile_id(60)), code_of(60))
    auto = made("auto", kind="auto")
    auto.vector_of = code_of
    assert auto.build(range(50)).manifest.kind == "hamming"


def test_the_kinds_for_codes_are_refused_where_the_encoder_gives_none(made):
    with pytest.raises(ConfigError, match=r"hamming keeps codes .* model.projection: hash"):
        made(kind="hamming").build(range(50))


@pytest.mark.usefixtures("codes")
def test_vectors_that_are_no_codes_are_not_cut_down_to_their_signs(made):
    index = made(kind="hamming")
    index.vector_of = vector_of
    with pytest.raises(ValueError, match="vectors are no codes"):
        index.build(range(50))


def test_of_few_tiles_the_choice_is_exact_and_says_why(made):
    published = made(kind="auto").build(range(50))
    assert published.manifest.kind == "flat"
    assert "50 vectors" in published.manifest.why
    assert published.manifest.recall is None


def test_a_sample_is_drawn_from_all_over_the_table(made):
    from rayjobs.index.build import sample

    index = made()
    table = write_embeddings(index.store, "made", range(400))
    drawn = sample(table, 100)
    assert drawn.shape == (100, 16)
    known = {vector_of(number).tobytes(): number for number in range(400)}
    numbers = [known[vector.tobytes()] for vector in drawn]
    assert len(set(numbers)) == 100
    assert np.histogram(numbers, bins=4, range=(0, 400))[0].min() > 10
    assert np.array_equal(drawn, sample(table, 100))
    assert len(sample(table, 1000)) == 400


def test_only_what_is_new_is_wanted(made):
    from rayjobs.index.append import compare

    index = made()
    index.build(range(60))
    index.delete([1, 2])
    wanted = compare(tile_table(range(50, 70)), index.current())
    assert sorted(wanted.new["tile_id"].to_pylist()) == sorted(map(tile_id, range(60, 70)))
    assert (wanted.held, wanted.kept_out) == (10, 0)
    wanted = compare(tile_table(range(10)), index.current())
    assert (wanted.new.num_rows, wanted.held, wanted.kept_out) == (0, 8, 2)
