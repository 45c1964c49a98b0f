"""The verb on an embedding table that lies in the workspace already: no Ray, no pixel but those of an example."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
import json

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest

from rayjobs.config import build
from rayjobs.embed.encode import METADATA_KEY
from rayjobs.embed.job import table_version
from rayjobs.errors import ConfigError
from rayjobs.experiment import Experiment
from rayjobs.label import job
from rayjobs.labels.events import LabelEvent
from rayjobs.labels.queue import Queues, queue_of
from rayjobs.labels.store import LabelStore
from rayjobs.labels.taxonomy import read_taxonomy, taxonomy_names
from rayjobs.models import encoder
from rayjobs.models.checkpoint import from_files, to_files
from rayjobs.models.spec import ModelSpec
from rayjobs.tiles.table import SCHEMA, geoparquet_bytes, read_geoparquet

SPEC = ModelSpec(
    backbone="test_resnet", dim=8, bands=("red", "green", "blue"), dtype="uint8", mean=(90.0,) * 3, std=(20.0,) * 3, tile_size=16,
    input_size=32, resolution_m=None,
)  # fmt: skip
TILES, RARE = 400, 24
IDS = [f"{number:04}" for number in range(TILES)]


class Quiet:
    """A console that remembers what it was told."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def settings(tmp_path, **label):
    raw = {
        "name": "small",
        "workspace": {"uri": str(tmp_path / "workspace")},
        "rasters": {"sources": [{"kind": "images", "root": "x"}]},
        "tracking": {"enabled": False},
        "label": {"seed_tiles": 10, "round_tiles": 10, "examples": [IDS[0]], **label},
    }
    return build(Experiment, raw)


@pytest.fixture
def workspace(tmp_path):
    """A set of which every 16th tile is an airport, its encoder, and its embedding table."""
    found = settings(tmp_path).open_workspace()
    files = to_files(encoder.build(SPEC, 0), SPEC)
    fingerprint = from_files(files["model.json"], files["model.safetensors"]).fingerprint
    checkpoint = found.checkpoints.draft("0001")
    for name, data in files.items():
        checkpoint.write(name, data)
    checkpoint.publish({"encoder_fingerprint": fingerprint})
    rng = np.random.default_rng(0)
    rare = np.arange(TILES) % 16 == 0
    vectors = rng.normal(size=(TILES, 8)) + rare[:, None] * np.array([2.2, 2.2, 0, 0, 0, 0, 0, 0])
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    table = pa.table(
        {
            "tile_id": IDS,
            "scene_id": ["s"] * TILES,
            "split": ["test" if number % 5 == 4 else "train" for number in range(TILES)],
            "geometry": pa.array([None] * TILES, pa.binary()),
            "datetime": pa.array([None] * TILES, pa.timestamp("us", tz="UTC")),
            "label": np.where(rare, "Airport", np.where(np.arange(TILES) % 2, "Farm", "Park")),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 8),
        }
    )
    tiles = table.drop_columns(["embedding"])
    for field in SCHEMA:
        tiles = tiles if field.name in tiles.column_names else tiles.append_column(field.name, pa.nulls(TILES, field.type))
    drafted = found.set.draft("v1")
    drafted.write("tiles.parquet", geoparquet_bytes(tiles))
    source = drafted.publish({"bands": list(SPEC.bands), "dtype": "uint8", "counts": {"kept": TILES, "by_split": {}}})
    table = table.replace_schema_metadata({METADATA_KEY: fingerprint.encode()})
    draft = found.embeddings().draft(table_version(source, fingerprint, settings(tmp_path).index.splits))
    draft.write("part-00000.parquet", geoparquet_bytes(table))
    draft.publish({"encoder_fingerprint": fingerprint, "distance": "cosine", "counts": {"rows": TILES}})
    return found


ORACLE = {"oracle": "tiles", "oracle_class": "Airport", "measured": "test", "budget": 20}


def rounds(version):
    return json.loads(version.read("report.json"))["rounds"]


def queued(version):
    return read_geoparquet(version.read("queue.parquet"))["tile_id"].to_pylist()


def test_the_oracle_is_asked_round_by_round_up_to_the_budget(workspace, tmp_path):
    experiment = settings(tmp_path, **ORACLE | {"budget": 60})
    console = Quiet()
    found = job.run(experiment, console)
    current = queue_of(workspace.store, "small").current()
    rows = rounds(current)
    assert [row["labels"] for row in rows] == [0, 10, 20, 30, 40, 50, 60]
    assert (found.labels, found.round, found.queued) == (60, 6, 10)
    assert found.by_class["positive"] >= 10, "drawing would find 4"
    assert sum(found.by_class.values()) == 60
    assert found.measured["AP"] > 0.3, "drawing would have 0.06"
    assert {"agreement", "expected_left", "validated", "advice"} <= set(rows[-1])
    assert len([line for line in console.lines if "round" in line]) == 7

    held = {tile for number, tile in enumerate(IDS) if number % 5 == 4}
    said = LabelStore(workspace.store, "small").events()
    assert not {event.tile_id for event in said} & held
    assert {(event.person, event.origin) for event in said} == {("oracle", "oracle")}
    assert {event.label for event in said if int(event.tile_id) % 16 == 0} == {"positive"}

    before = len(said), current.version
    assert job.run(experiment, Quiet()).version == current.version
    assert (len(LabelStore(workspace.store, "small").events()), queue_of(workspace.store, "small").current().version) == before


def test_a_study_goes_on_after_a_write_that_arrived_and_was_refused(workspace, tmp_path, monkeypatch):
    append = LabelStore.append

    def late(self, events, **more):
        append(self, events, **more)
        return append(self, events, **more)  # finds its own events, and accepts none

    monkeypatch.setattr(LabelStore, "append", late)
    assert job.run(settings(tmp_path, **ORACLE), Quiet()).labels == 20


def test_a_round_leaves_a_queue_a_map_and_a_labelled_set(workspace, tmp_path):
    job.run(settings(tmp_path, **ORACLE), Quiet())
    current = queue_of(workspace.store, "small").current()
    taxonomy = read_taxonomy(workspace.store, "small")
    queue = Queues(workspace.store, "small").current(taxonomy)
    assert list(queue.tiles) == queued(current)
    said = {event.tile_id: event.label for event in LabelStore(workspace.store, "small").events()}
    assert not set(queue.tiles) & set(said)
    assert set(queue.suggestions) == set(queue.tiles)

    table = read_geoparquet(current.read("predictions.parquet"))
    assert table["tile_id"].to_pylist() == IDS
    rows = np.array(table["probabilities"].to_pylist())
    assert rows.sum(1) == pytest.approx(np.ones(TILES), abs=1e-5)
    assert table["probability"].to_pylist() == pytest.approx(rows[:, 0].tolist())
    assert {tile: label for tile, label in zip(IDS, table["label"].to_pylist(), strict=True) if label} == said

    labelled = {row["tile_id"]: row for row in csv.DictReader(io.StringIO(current.read("labelled.csv").decode()))}
    assert {tile: row["label"] for tile, row in labelled.items() if row["by"] == "oracle"} == said
    by_head = {tile for tile, row in labelled.items() if row["by"] == "head"}
    sure = {tile for tile, row in zip(IDS, rows, strict=True) if row.max() > 0.5} - set(said)
    assert by_head == sure
    assert all(float(labelled[tile]["probability"]) > 0.5 for tile in by_head)
    assert PIL.Image.open(io.BytesIO(current.read("curve.png"))).size[0] > 300


def test_the_labelled_set_tells_the_oracle_from_people(workspace, tmp_path):
    job.run(settings(tmp_path, **ORACLE), Quiet())
    labels = LabelStore(workspace.store, "small")
    asked = labels.events()[0]
    silent = next(tile for tile in IDS if tile not in {event.tile_id for event in labels.events()})
    labels.append(
        [
            dataclasses.replace(asked, event_id=f"00000000-0000-4000-8000-00000000000{number}", tile_id=tile, person="anna", origin="page")
            for number, tile in enumerate([asked.tile_id, silent])
        ]
    )
    job.run(settings(tmp_path), Quiet())
    labelled = csv.DictReader(io.StringIO(queue_of(workspace.store, "small").current().read("labelled.csv").decode()))
    by = {row["tile_id"]: row["by"] for row in labelled}
    assert {tile for tile, who in by.items() if who == "people"} == {asked.tile_id, silent}
    assert {tile for tile, who in by.items() if who == "oracle"} == {event.tile_id for event in labels.events()} - {asked.tile_id, silent}


def test_a_study_in_two_halves_is_that_in_one(workspace, tmp_path):
    job.run(settings(tmp_path, **ORACLE | {"budget": 15}), Quiet())
    half = queue_of(workspace.store, "small").current()
    assert rounds(half)[-1]["labels"] == 15
    job.run(settings(tmp_path, **ORACLE), Quiet())
    split = rounds(queue_of(workspace.store, "small").current())
    assert [row["labels"] for row in split] == [0, 10, 15, 20]

    job.run(settings(tmp_path, **ORACLE, taxonomy="whole"), Quiet())
    whole = queue_of(workspace.store, "whole")
    first = [whole.at(name) for name in whole.finished()][:2]
    again = queue_of(workspace.store, "small")
    assert [queued(version) for version in first] == [queued(again.at(name)) for name in again.finished()[:2]]


def test_people_are_asked_once_and_what_they_said_trains(workspace, tmp_path):
    experiment = settings(tmp_path)
    first = job.run(experiment, Quiet())
    assert (first.round, first.labels, first.queued, first.advice) == (0, 0, 10, None)
    asked = queued(queue_of(workspace.store, "small").current())
    assert asked[0] == IDS[0], "the example is the nearest to itself"

    def say(tile, kind, label):
        return LabelEvent(
            event_id=f"{tile}-{kind}",
            tile_id=tile,
            kind=kind,
            label=label,
            person="Ada",
            at=datetime.datetime.now(datetime.UTC),
            taxonomy_version=1,
            origin="page",
        )

    store = LabelStore(workspace.store, "small")
    store.append([say(asked[0], "label", "positive"), say(asked[1], "label", "positive"), say(asked[2], "unsure", None)])
    second = job.run(experiment, Quiet())
    assert (second.round, second.labels, second.advice) == (1, 2, None), "one class is no choice"
    assert not set(queued(queue_of(workspace.store, "small").current())) & set(asked[:3])
    store.append([say(tile, "label", "negative") for tile in asked[3:6]])
    third = job.run(experiment, Quiet())
    assert (third.labels, third.by_class) == (5, {"positive": 2, "negative": 3})
    assert third.advice.startswith("go on")
    assert rounds(queue_of(workspace.store, "small").current())[-1]["unsure"] == 1
    assert job.run(experiment, Quiet()).version == third.version
    assert job.run(settings(tmp_path, strategy="positive"), Quiet()).version != third.version


def test_rounds_without_a_new_label_are_no_reason_to_stop(workspace, tmp_path):
    job.run(settings(tmp_path, **ORACLE | {"budget": 30}), Quiet())
    taken = rounds(queue_of(workspace.store, "small").current())[-1]["agreement"]
    assert taken is not None
    for strategy in ("positive", "random", "margin", "entropy"):
        found = job.run(settings(tmp_path, **ORACLE | {"budget": 30}, strategy=strategy), Quiet())
        assert (found.labels, found.advice.partition(";")[0]) == (30, "go on")
    rows = rounds(queue_of(workspace.store, "small").current())
    assert [row["labels"] for row in rows] == [0, 10, 20, 30, 30, 30, 30, 30]
    assert [row["agreement"] for row in rows[3:]] == [taken, None, None, None, None]
    job.run(settings(tmp_path, **ORACLE | {"budget": 31}, strategy="entropy"), Quiet())
    assert rounds(queue_of(workspace.store, "small").current())[-1]["agreement"] is not None, "a new label is compared again"


def test_the_examples_are_kept_to_until_there_is_a_head(workspace, tmp_path):
    target, console = queue_of(workspace.store, "small"), Quiet()
    first = job.run(settings(tmp_path), Quiet())
    asked = queued(target.current())
    assert job.run(settings(tmp_path, examples=[]), console).version == first.version, "the queue stays"
    assert any("goes on with the examples of the round before: 0000" in line for line in console.lines)
    job.run(settings(tmp_path, examples=[], seed_tiles=20), Quiet())
    assert queued(target.current())[:8] == asked[:8], "more tiles, the same neighbours first"
    console = Quiet()
    job.run(settings(tmp_path, examples=[], seed_tiles=20, seed_neighbours=0), console)
    assert not any("examples" in line for line in console.lines)
    assert queued(target.current())[:8] != asked[:8], "all are drawn where no neighbours are wanted"

    job.run(settings(tmp_path, **ORACLE), Quiet())
    console = Quiet()
    job.run(settings(tmp_path, examples=[]), console)
    assert not any("examples" in line for line in console.lines), "the head chooses now"


def test_an_oracle_of_another_class_is_refused_where_one_has_answered(workspace, tmp_path):
    job.run(settings(tmp_path, **ORACLE | {"budget": 18}), Quiet())
    said = LabelStore(workspace.store, "small").events()
    with pytest.raises(ConfigError, match=r"is Farm, .* small holds 18 answers .* for Airport: .* another label\.taxonomy"):
        job.run(settings(tmp_path, **ORACLE | {"budget": 21, "oracle_class": "Farm"}), Quiet())
    with pytest.raises(ConfigError, match=r"says negative of tile .* answer positive"):
        job.run(settings(tmp_path, **ORACLE | {"budget": 21}, sought="negative"), Quiet())
    assert LabelStore(workspace.store, "small").events() == said
    job.run(settings(tmp_path, strategy="random"), Quiet())
    with pytest.raises(ConfigError, match="for Airport"):  # a round of people is between
        job.run(settings(tmp_path, **ORACLE | {"budget": 21, "oracle_class": "Farm"}), Quiet())
    assert job.run(settings(tmp_path, **ORACLE | {"budget": 21}), Quiet()).labels == 21
    assert job.run(settings(tmp_path, **ORACLE | {"budget": 21, "oracle_class": "Farm"}, taxonomy="farms"), Quiet()).labels == 21


def test_examples_are_tiles_or_pictures(workspace, tmp_path):
    picture = tmp_path / "port.png"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(picture)
    assert job.run(settings(tmp_path, examples=[str(picture), IDS[3]]), Quiet()).queued == 10
    with pytest.raises(ConfigError, match="no tile of the set, and no picture"):
        job.run(settings(tmp_path, examples=["nowhere.png"], taxonomy="b"), Quiet())
    grey = tmp_path / "grey.png"
    PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(grey)
    with pytest.raises(ConfigError, match=r"label\.examples: '.*grey\.png' .*bands"):
        job.run(settings(tmp_path, examples=[str(grey)], taxonomy="c"), Quiet())
    text = tmp_path / "s.yaml"
    text.write_text("name: small")
    with pytest.raises(ConfigError, match=r"label\.examples: '.*s\.yaml' is no PNG, JPEG or GeoTIFF"):
        job.run(settings(tmp_path, examples=[str(picture), str(text)], taxonomy="d"), Quiet())


def test_an_oracle_of_a_file_knows_its_classes(workspace, tmp_path):
    answers = tmp_path / "labels.csv"
    answers.write_text("tile_id,label\n" + "".join(f"{tile},{'port' if int(tile) % 16 == 0 else 'sea'}\n" for tile in IDS[:300]))
    wanted = {"oracle": str(answers), "classes": ["port", "sea"], "budget": 20, "splits": ["train"]}
    found = job.run(settings(tmp_path, **wanted), Quiet())
    assert set(found.by_class) == {"port", "sea"}
    said = LabelStore(workspace.store, "small").events()
    assert {event.kind for event in said if int(event.tile_id) >= 300} == {"unsure"}
    assert len(said) == 20 > found.labels, "of what it is unsure it was asked, too"
    assert {event.label for event in said if event.tile_id in IDS[:300]} == {"port", "sea"}
    assert all(int(event.tile_id) % 5 != 4 for event in said)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"sought": "ship"}, "has no class 'ship'"),
        ({"oracle": "tiles", "oracle_class": "Ship"}, "knows no 'Ship', but Airport, Farm, Park"),
        ({"oracle": "tiles"}, "'Airport' is no class of the taxonomy"),
        ({"oracle": "tiles", "oracle_class": "Farm", "classes": ["a", "b", "c"]}, "wants a taxonomy of two classes"),
        ({"measured": "test", "splits": ["test"]}, "no embedded tile may be labelled"),
        ({"examples": ["nowhere.png"]}, "no tile of the set, and no picture"),
        ({"oracle": "nosuch.csv"}, r"label\.oracle: there is no .*nosuch\.csv; name a CSV"),
    ],
)
def test_what_cannot_be_is_said_before_a_tile_is_embedded_or_a_taxonomy_made(workspace, tmp_path, monkeypatch, label, message):
    monkeypatch.setattr(job, "_embedded", lambda *_: pytest.fail("the set was embedded first"))
    with pytest.raises(ConfigError, match=message):
        job.run(settings(tmp_path, **label), Quiet())
    with pytest.raises(ConfigError, match=message):
        job.preview(settings(tmp_path, **label))
    assert taxonomy_names(workspace.store) == []
    assert workspace.store.list("labels/") == [], "it could not be taken back"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tile,class\na,b\n", "has no rows with the columns tile_id and label"),
        ("tile_id,label\n0001\n", "row 1: lacks its tile_id or its label"),
        ("tile_id,label\n0001,Gew\u00e4sser\n".encode("latin-1"), "is no CSV in UTF-8"),
        (f"tile_id,label\n0001,{'a' * 200_000}\n", "is no CSV in UTF-8: field larger"),
        ("tile_id,label\nfirst,positive\nsecond,negative\n", "knows none of the 400 tiles of this set"),
        (f"tile_id,label\n{IDS[0]},\nsecond,negative\n", "knows none of the 400 tiles of this set"),
    ],
)
def test_an_oracle_that_cannot_answer_is_not_asked(workspace, tmp_path, content, message):
    """What it is unsure of stays so, whatever the next file says."""
    given = tmp_path / "given.csv"
    given.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=f"oracle .*{message}"):
        job.run(settings(tmp_path, oracle=str(given)), Quiet())
    assert LabelStore(workspace.store, "small").events() == []
    given.write_bytes(
        b"tile_id,label\r" + b"".join(f"{tile},{'positive' if int(tile) % 16 == 0 else 'negative'}\r".encode() for tile in IDS)
    )
    assert job.run(settings(tmp_path, oracle=str(given), budget=10), Quiet()).labels == 10, "lines that end in a carriage return alone"


def test_an_oracle_may_know_other_sets_too(workspace, tmp_path):
    given = tmp_path / "given.csv"
    given.write_text("tile_id,label\nelsewhere,Ship\n" + "".join(f"{tile},positive\n" for tile in IDS))
    assert job.run(settings(tmp_path, oracle=str(given), budget=10), Quiet()).by_class == {"positive": 10, "negative": 0}


def test_a_queue_of_another_program_is_followed_by_a_round(workspace, tmp_path):
    experiment, target = settings(tmp_path), queue_of(workspace.store, "small")
    first = job.run(experiment, Quiet()).version
    draft = target.draft("theirs", after=target.current())
    draft.write("queue.parquet", geoparquet_bytes(pa.table({"tile_id": IDS[:2], "rank": pa.array([0, 1], pa.int32())})))
    draft.publish({"parents": {}, "counts": {"tiles": 2}})
    assert job.preview(experiment)["rounds"] == 0
    found = job.run(experiment, Quiet())
    assert (found.round, found.queued, target.current().version) == (0, 10, found.version)
    assert job.run(experiment, Quiet()).version == found.version == first


@pytest.mark.parametrize("how", [job.preview, lambda experiment: job.run(experiment, Quiet())])
def test_a_name_that_is_no_taxonomys_is_refused_at_first(tmp_path, how):
    experiment = dataclasses.replace(settings(tmp_path), name="Small.Set")
    with pytest.raises(ConfigError, match=r"'Small\.Set' cannot be a taxonomy's name"):
        how(experiment)
    with pytest.raises(ConfigError, match=r"label\.taxonomy.*'Small' cannot be a taxonomy's name"):
        how(settings(tmp_path, taxonomy="Small"))


def test_the_plan_touches_nothing(workspace, tmp_path):
    planned = job.preview(settings(tmp_path, **ORACLE))
    assert (planned["tiles"], planned["embedded_already"], planned["rounds"]) == (TILES, True, 0)
    assert queue_of(workspace.store, "small").current() is None
    assert dataclasses.asdict(job.run(settings(tmp_path, **ORACLE), Quiet()))["taxonomy"] == "small"
    assert job.preview(settings(tmp_path, **ORACLE))["labels_at_last_round"] == 20
