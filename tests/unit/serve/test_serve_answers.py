"""Answers from an index version on disk: what HTTP and Ray are put in front of."""

from __future__ import annotations

import datetime
import io

import numpy as np
import PIL.Image
import pyarrow as pa
import pydantic
import pytest
import shapely

from rayjobs.errors import FingerprintError, QueryError, UnknownTileError
from rayjobs.models.checkpoint import fingerprint, to_files
from rayjobs.models.encoder import build
from rayjobs.models.spec import ModelSpec
from rayjobs.retrieval.kinds import Effort
from rayjobs.retrieval.manifest import TOMBSTONES, IndexManifest, tombstone_bytes
from rayjobs.retrieval.segments import build_segment
from rayjobs.serve.answers import Answers
from rayjobs.serve.schema import Example, Filters, SearchRequest
from rayjobs.storage import Artefact, open_store
from rayjobs.tiles import chips

DIM, COUNT = 4, 12
SPEC = ModelSpec(
    backbone="resnet10t", dim=DIM, bands=("red", "green", "blue"), dtype="uint8", mean=(99.0,) * 3, std=(50.0,) * 3,
    tile_size=8, input_size=32, resolution_m=10.0,
)  # fmt: skip
VECTORS = np.random.default_rng(3).normal(size=(COUNT, DIM)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
IDS = [f"{number:020x}" for number in range(COUNT)]


def place(number: int) -> tuple[float, float]:
    """A row of tiles to the east, a tenth of a degree each, half of it free."""
    return number / 10, 40.0


def tile_table() -> pa.Table:
    footprints = [shapely.to_wkb(shapely.box(lon, lat, lon + 0.05, lat + 0.05)) for lon, lat in map(place, range(COUNT))]
    first = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    return pa.table(
        {
            "tile_id": IDS, "scene_id": ["scene"] * COUNT, "label": ["field", None] * (COUNT // 2),
            "datetime": pa.array([first + datetime.timedelta(days=number) for number in range(COUNT)], pa.timestamp("us", tz="UTC")),
            "row": [0] * COUNT, "col": [8 * number for number in range(COUNT)], "height": [8] * COUNT, "width": [8] * COUNT,
            "shard": [0] * COUNT, "geometry": pa.array(footprints, pa.binary()),
        }
    )  # fmt: skip


def pixels_of(number: int) -> np.ndarray:
    return np.full((3, 8, 8), 20 * number, np.uint8)


def publish(store, *, of_encoder=0, said_encoder=0):
    sets = Artefact(store, "sets", "places").draft("one")
    rows = [
        chips.row(chips.Chip(tile_id=tile_id, pixels=pixels_of(number), valid=np.ones((8, 8), bool))) for number, tile_id in enumerate(IDS)
    ]
    sets.write("chips/part-00000.parquet", chips.shard_bytes(rows, "uint8", {}))
    sets.publish({"parents": {}, "counts": {}, "bands": list(SPEC.bands), "band_mean": [99.0] * 3, "band_std": [50.0] * 3})
    draft = Artefact(store, "indexes", "places").draft("v1")
    entries = []
    for number, part in enumerate((slice(0, 5), slice(5, COUNT))):
        entry, files = build_segment(f"segment-{number:05d}", VECTORS[part], tile_table().slice(part.start, part.stop - part.start))
        entries.append(entry)
        for name, data in files.items():
            draft.write(name, data)
    draft.write(TOMBSTONES, tombstone_bytes([IDS[3]]))
    for name, data in to_files(build(SPEC, seed=of_encoder), SPEC).items():
        draft.write(f"encoder/{name}", data)
    manifest = IndexManifest(
        encoder_uri="encoder", encoder_fingerprint=fingerprint(SPEC, build(SPEC, seed=said_encoder).state_dict()), distance="cosine",
        dimension=DIM, kind="flat", why="few", effort=Effort(), recall=None, quantiser=None, segments=tuple(entries), deleted=1,
    )  # fmt: skip
    return draft.publish({"parents": {"set": "places/one"}, "counts": {}, **manifest.fields()})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(f"file:{tmp_path_factory.mktemp('workspace')}")


@pytest.fixture(scope="module")
def answers(store, tmp_path_factory):
    return Answers(store, publish(store), cache=tmp_path_factory.mktemp("cache"), max_limit=100)


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


def test_an_index_that_carries_another_encoder_is_refused(tmp_path):
    store = open_store(f"file:{tmp_path}")
    version = publish(store, of_encoder=1)
    with pytest.raises(FingerprintError, match="publish it again with `rayjobs index`"):
        Answers(store, version, cache=tmp_path, max_limit=10)


@pytest.mark.parametrize(
    "body",
    [
        {"positives": []},
        {"positives": [{}]},
        {"positives": [{"tile_id": IDS[0], "point": {"lon": 0, "lat": 0}}]},
        {"positives": [{"tile_id": "../secret"}]},
        {"positives": [{"point": {"lon": 181, "lat": 0}}]},
        {"positives": [{"embedding": [float("nan")]}]},
        {"positives": [{"tile_id": IDS[0]}] * 65},
        {"positives": [{"tile_id": IDS[0]}], "limit": 0},
        {"positives": [{"tile_id": IDS[0]}], "bbox": [0, 0, 1]},
        {"positives": [{"tile_id": IDS[0]}], "surprise": 1},
    ],
)
def test_requests_that_say_too_little_or_too_much(body):
    with pytest.raises(pydantic.ValidationError):
        SearchRequest.model_validate(body)
