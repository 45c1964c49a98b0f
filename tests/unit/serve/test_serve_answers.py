"""Answers from an index version on disk: what HTTP and Ray are put in front of."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pydantic
import pytest
import shapely

from rayjobs.errors import FingerprintError, IndexCorruptError, QueryError, UnknownTileError
from rayjobs.serve.answers import Answers
from rayjobs.serve.schema import ChangesRequest, Example, Filters, Ground, Page, SearchRequest
from rayjobs.storage import open_store
from tests.unit.serve.served_index import COUNT, DIM, IDS, VECTORS, pixels_of, place, publish, tile_table


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(f"file:{tmp_path_factory.mktemp('workspace')}")


@pytest.fixture(scope="module")
def answers(store, tmp_path_factory):
    return Answers(publish(store), cache=tmp_path_factory.mktemp("cache"), max_limit=100)


def test_info_sums_up_the_segments(answers):
    info = answers.info()
    assert (info.name, info.index_version, info.rows, info.dimension) == ("places", "v1", COUNT - 1, DIM)
    assert info.bounds == pytest.approx([0, 40, 1.15, 40.05])
    assert [moment[:10] for moment in info.dates] == ["2020-01-01", "2020-01-12"]


def test_a_tile_and_its_place_are_the_same_query(answers):
    by_tile, without = answers.query_vector([Example(tile_id=IDS[7])])
    lon, lat = place(7)
    by_place, without_too = answers.query_vector([Example(point={"lon": lon + 0.02, "lat": lat + 0.02})])
    np.testing.assert_allclose(by_tile, VECTORS[7], atol=1e-6)
    np.testing.assert_array_equal(by_tile, by_place)
    assert without == without_too == (IDS[7],)


def test_several_examples_are_averaged(answers):
    vector, _ = answers.query_vector([Example(tile_id=IDS[1]), Example(embedding=(3 * VECTORS[2]).tolist())])
    mean = VECTORS[1] + VECTORS[2]
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize(
    ("examples", "error", "words"),
    [
        ([Example(embedding=[1.0, 0.0])], QueryError, "2 numbers, the index 4"),
        (
            [Example(embedding=[1.0] * DIM, encoder_fingerprint="0123456789ab")],
            QueryError,
            "made by encoder 0123456789ab, .* embed the image",
        ),
        ([Example(embedding=[0.0] * DIM)], QueryError, "no direction"),
        ([Example(embedding=[1e38] * DIM)], None, ""),
        ([Example(embedding=VECTORS[0].tolist()), Example(embedding=(-VECTORS[0]).tolist())], QueryError, "no direction"),
        ([Example(tile_id="f" * 20)], UnknownTileError, "f" * 20),
        ([Example(tile_id=IDS[3])], UnknownTileError, IDS[3]),
        ([Example(point={"lon": 0.07, "lat": 40.02})], UnknownTileError, "km away"),
    ],
)
def test_examples_that_are_none(answers, examples, error, words):
    if error is None:
        vector, _ = answers.query_vector(examples)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        return
    with pytest.raises(error, match=words):
        answers.query_vector(examples)


def test_an_embedding_may_name_its_encoder(answers):
    for digits in (8, 12, 64):
        example = Example(embedding=VECTORS[0].tolist(), encoder_fingerprint=answers.encoder_fingerprint[:digits])
        np.testing.assert_allclose(answers.query_vector([example])[0], VECTORS[0], atol=1e-6)


def test_hits_are_those_of_all_comparisons(answers):
    answer = answers.search(VECTORS[7], Filters(limit=4, bbox=[0.0, 39.0, 0.86, 41.0]), without=[IDS[7]])
    inside = [number for number in range(9) if number not in (3, 7)]
    ranking = sorted(inside, key=lambda number: -float(VECTORS[7] @ VECTORS[number]))
    assert [feature.id for feature in answer.features] == [IDS[number] for number in ranking[:4]]
    assert answer.candidates == len(inside)
    assert answer.exact
    first = answer.features[0]
    assert first.properties.score == pytest.approx(float(VECTORS[7] @ VECTORS[ranking[0]]), abs=1e-6)
    assert shapely.geometry.shape(first.geometry).bounds == pytest.approx((*place(ranking[0]), *np.add(place(ranking[0]), 0.05)))


def test_a_limit_above_the_service_s_is_refused(answers):
    with pytest.raises(QueryError, match="limit 101 is above the 100"):
        answers.search(VECTORS[0], Filters(limit=101), without=[])


def test_a_tile_tells_what_is_known_of_it(answers):
    feature = answers.tile(IDS[2])
    assert (feature.properties.label, feature.properties.window.col, feature.properties.score) == ("field", 16, None)


def test_a_thumbnail_is_a_picture_of_the_tile(answers):
    picture = PIL.Image.open(io.BytesIO(answers.thumbnail(IDS[2])))
    assert picture.format == "PNG"
    assert np.unique(np.asarray(picture)).size <= 4  # an even tile, and an opacity
    with pytest.raises(UnknownTileError):
        answers.thumbnail("0" * 19 + "f")


@pytest.mark.parametrize(
    ("published", "words"),
    [
        ({"known": tile_table().drop_columns(["set"])}, "does not say where its tiles' pixels are"),
        ({"with_pixels": IDS[:6]}, "names tiles that its sets do not hold"),
    ],
)
def test_pixels_that_the_index_does_not_lead_to(tmp_path, published, words):
    version = publish(open_store(f"file:{tmp_path / 'workspace'}"), **published)
    answers = Answers(version, cache=tmp_path / "cache", max_limit=10)
    with pytest.raises(IndexCorruptError, match=words):
        answers.thumbnail(IDS[8])
    with pytest.raises(IndexCorruptError, match=words):
        answers.stored(COUNT)


def test_an_index_that_carries_another_encoder_is_refused(tmp_path):
    store = open_store(f"file:{tmp_path}")
    version = publish(store, of_encoder=1)
    with pytest.raises(FingerprintError, match="publish it again with `rayjobs index`"):
        Answers(version, cache=tmp_path, max_limit=10)


@pytest.mark.parametrize(
    "body",
    [
        {"positives": []},
        {"positives": [{}]},
        {"positives": [{"tile_id": IDS[0], "point": {"lon": 0, "lat": 0}}]},
        {"positives": [{"tile_id": "../secret"}]},
        {"positives": [{"point": {"lon": 181, "lat": 0}}]},
        {"positives": [{"embedding": [float("nan")]}]},
        {"positives": [{"tile_id": IDS[0], "encoder_fingerprint": "0123456789ab"}]},
        {"positives": [{"embedding": [1.0], "encoder_fingerprint": "latest"}]},
        {"positives": [{"tile_id": IDS[0]}] * 65},
        {"positives": [{"tile_id": IDS[0]}], "limit": 0},
        {"positives": [{"tile_id": IDS[0]}], "bbox": [0, 0, 1]},
        {"positives": [{"tile_id": IDS[0]}], "surprise": 1},
    ],
)
def test_requests_that_say_too_little_or_too_much(body):
    with pytest.raises(pydantic.ValidationError):
        SearchRequest.model_validate(body)


def request_of(*positives, **fields):
    return SearchRequest(positives=[{"tile_id": IDS[number]} for number in positives], **fields)


def test_negatives_push_away_and_are_left_out(answers):
    vector, without = answers.query_vector([Example(tile_id=IDS[1])], [Example(tile_id=IDS[2])])
    moved = 1.75 * VECTORS[1].astype(np.float64) - 0.15 * VECTORS[2]
    np.testing.assert_allclose(vector, moved / np.linalg.norm(moved), atol=1e-6)
    assert without == (IDS[1], IDS[2])
    linear, _ = answers.query_vector([Example(tile_id=IDS[1])], [Example(tile_id=IDS[2])], method="linear")
    assert linear @ VECTORS[1] > linear @ VECTORS[2]


def test_a_tile_is_not_liked_and_disliked(answers):
    with pytest.raises(QueryError, match="positive and a negative"):
        answers.query_vector([Example(tile_id=IDS[1])], [Example(tile_id=IDS[1])])


def test_a_place_can_be_meant_on_a_date(answers):
    lon, lat = place(7)
    point = {"lon": lon + 0.02, "lat": lat + 0.02, "datetime": "2020-01-08"}
    assert answers.query_vector([Example(point=point)])[1] == (IDS[7],)
    with pytest.raises(UnknownTileError, match=r"none of the 1 tiles that hold .* is of the time"):
        answers.query_vector([Example(point=point | {"datetime": "2020-01-09"})])


def test_a_batch_answers_as_its_searches_alone(answers):
    requests = [
        request_of(1),
        request_of(2, limit=3),
        request_of(4, 5),
        request_of(6, labels=["field"]),
        request_of(7, negatives=[{"tile_id": IDS[8]}]),
    ]
    together = answers.search_batch(requests)
    for request, answer in zip(requests, together, strict=True):
        vector, without = answers.query_vector(request.positives, request.negatives)
        alone = answers.search(vector, request, without=without)
        assert answer == alone
    assert {feature.properties.label for feature in together[3].features} == {"field"}


def test_a_batch_says_which_search_cannot_be_answered(answers):
    with pytest.raises(UnknownTileError, match=r"searches\[1\]: the index holds no tile"):
        answers.search_batch([request_of(1), request_of(3)])
    with pytest.raises(QueryError, match="1,100 hits together, offsets counted, above the 1,000 of a batch"):
        answers.search_batch([request_of(1, limit=50, offset=50)] * 11)


def test_hits_that_lie_apart_are_counted_from_the_first(answers):
    with pytest.raises(QueryError, match="offset and limit together 101 is above the 100"):
        answers.search(VECTORS[0], Filters(limit=1, offset=100, spread_m=1.0), without=[])


@pytest.mark.parametrize("left", [0, 1, 7])
def test_what_is_tried_is_what_can_be_found(tmp_path, left):
    version = publish(open_store(f"file:{tmp_path}"), deleted=IDS[left:])
    chips, vectors = Answers(version, cache=tmp_path, max_limit=10).stored(8)
    assert sorted(chip.tile_id for chip in chips) == IDS[:left]
    numbers = [IDS.index(chip.tile_id) for chip in chips]
    np.testing.assert_array_equal(vectors, VECTORS[numbers].reshape(-1, DIM))
    assert all((chip.pixels == pixels_of(number)).all() for number, chip in zip(numbers, chips, strict=True))


def test_filters_of_a_request_reach_the_search(answers):
    triangle = {"type": "Polygon", "coordinates": [[[0.0, 39.9], [0.3, 39.9], [0.0, 40.4], [0.0, 39.9]]]}
    fields = {"intersects": triangle, "datetime": "2020-01-02/..", "where": {"row": 0, "label": [None, "field"]}, "scenes": ["scene"]}
    found = answers.search(VECTORS[7], Filters(limit=100, **fields), without=())
    drawn = shapely.geometry.shape(triangle)
    inside = [
        number for number in range(1, COUNT) if number != 3 and drawn.intersects(shapely.box(*place(number), *np.add(place(number), 0.05)))
    ]
    assert sorted(feature.id for feature in found.features) == [IDS[number] for number in inside]
    assert len(inside) == found.candidates == 2
    apart = answers.search(VECTORS[7], Filters(limit=100, spread_m=20_000), without=())
    assert len(apart.features) < COUNT / 2
    with pytest.raises(QueryError, match="did you mean 'label'"):
        answers.search(VECTORS[7], Filters(where={"lable": "x"}), without=())


def test_tiles_are_listed_for_a_map(answers):
    found = answers.tiles(Ground(bbox=[0.0, 39.0, 0.56, 41.0]), Page(limit=2, offset=1))
    assert [feature.id for feature in found.features] == IDS[1:3]
    assert (found.candidates, found.exact, found.features[0].properties.score) == (5, True, None)


def test_places_are_compared_with_themselves(answers):
    found = answers.changes(ChangesRequest.model_validate({"from": "2020-01-01/2020-01-07", "to": "2020-01-08/2020-01-12", "limit": 3}))
    moved = {number: 1 - float(VECTORS[number] @ VECTORS[number + 7]) for number in range(5) if number != 3}
    ranking = sorted(moved, key=lambda number: -moved[number])
    assert [feature.properties.from_tile_id for feature in found.features] == [IDS[number] for number in ranking[:3]]
    first = found.features[0]
    assert first.id == first.properties.to_tile_id == IDS[ranking[0] + 7]
    assert first.properties.change == pytest.approx(moved[ranking[0]], abs=1e-6)
    assert (first.properties.place_id, found.candidates) == (f"place-{ranking[0]}", 4)
    assert [feature.id for feature in answers.same_place(IDS[1]).features] == [IDS[8]]


def test_how_alike_the_ground_in_view_is(answers):
    boxes, scores = answers.similarity(VECTORS[7], Ground(bbox=[0.0, 39.0, 0.56, 41.0]), most=100)
    np.testing.assert_allclose(boxes[:, 0], [0, 0.1, 0.2, 0.4, 0.5], atol=1e-9)
    np.testing.assert_allclose(scores, VECTORS[[0, 1, 2, 4, 5]] @ VECTORS[7], atol=1e-6)
    assert len(answers.similarity(VECTORS[7], Ground(), most=4)[1]) == 4


def test_what_is_quick_has_no_filter(answers):
    assert answers.is_quick(request_of(1))
    assert not answers.is_quick(request_of(1, labels=["x"]))
    assert not answers.is_quick(request_of(1, negatives=[]))
    assert not answers.is_quick(SearchRequest(positives=[{"point": {"lon": 0.0, "lat": 40.0, "datetime": "2020-01-01"}}]))


def test_a_search_of_much_is_not_quick(answers, monkeypatch):
    monkeypatch.setattr(answers.searcher.shards, "cost_ns", 2e6)
    assert not answers.is_quick(request_of(1))
