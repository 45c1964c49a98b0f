"""`rayjobs evaluate` from the tile table to the report; only the embedding, which is Ray's, is made up; nothing is drawn."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from rayjobs.config import build, to_dict
from rayjobs.console import Console
from rayjobs.embed.job import Embeddings
from rayjobs.errors import ConfigError, TrainingError
from rayjobs.evaluate import job, rows
from rayjobs.evaluate.illustrate import Illustrated
from rayjobs.experiment import Experiment
from rayjobs.geo import Grid
from rayjobs.models.checkpoint import from_files, to_files
from rayjobs.models.encoder import build as build_encoder
from rayjobs.models.spec import statistics_spec
from rayjobs.rasters.scenes import Asset, Scene
from rayjobs.tiles.section import GridSampler, SplitsSection, TilesSection
from rayjobs.tiles.table import geoparquet_bytes, plan_tiles, read_geoparquet

CLASSES = ["water", "forest", "crops"]
SPEC = statistics_spec(bands=["red"], mean=[0.0], std=[1.0], tile_size=8, resolution_m=30.0, dtype="uint16")


def tile_table(*, labels):
    grid = Grid(crs="EPSG:32760", transform=(30.0, 0, 500_000.0, 0, -30.0, 8_120_000.0), height=128, width=128)
    scene = Scene(scene_id="a", assets={"red": Asset(uri="x.tif")}, grid=grid, block=(8, 8), dtype="uint16")
    splits = SplitsSection(train=0.5, val=0, test=0.5, block_m=500)
    table = plan_tiles([scene], TilesSection(size=8, sampler=GridSampler(), splits=splits))
    if not labels:
        return table
    held = np.random.default_rng(0).dirichlet([0.4] * 3, table.num_rows)
    values = {
        "label": [CLASSES[place] for place in held.argmax(1)],
        "label_fractions": held.tolist(),
        "label_coverage": [1.0] * table.num_rows,
    }
    for name, column in values.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(column, table.schema.field(place).type))
    return table


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Make an experiment whose set and checkpoint are in the workspace, and whose rows are random vectors."""

    def make(*, labels=True, **settings):
        keys = {"resamples": 100, "ks": [1, 5], "objective": "recall@5", **settings}
        made = build(
            Experiment,
            {
                "name": "made-up",
                "workspace": {"uri": str(tmp_path / "workspace")},
                "rasters": {"sources": [{"kind": "files", "uris": ["*.tif"]}]},
                "tiles": {"size": 8, "splits": {"block_m": 500}},
                "evaluate": keys,
                "tracking": {"enabled": False},
            },
        )
        published(made, tile_table(labels=labels), CLASSES if labels else [])
        return made

    monkeypatch.setattr(job, "joined", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(job, "embed_rows", made_up)
    monkeypatch.setattr(job, "_illustrated", lambda *_: Illustrated(pictures={}, board={}, notes=()))
    return make


def published(made, table, classes):
    workspace = made.open_workspace()
    by_split = {split: table["split"].to_pylist().count(split) for split in ("train", "test")}
    draft = workspace.set.draft("one")
    draft.write("tiles.parquet", geoparquet_bytes(table))
    draft.publish({"parents": {}, "classes": classes, "counts": {"kept": table.num_rows, "by_split": by_split}})
    files = to_files(build_encoder(SPEC, 0), SPEC)
    draft = workspace.checkpoints.draft("epoch-0001")
    for name, data in files.items():
        draft.write(name, data)
    draft.publish({"parents": {}, "encoder_fingerprint": "f" * 64})


def made_up(experiment, source, trained, console):
    """Two rows: one knows what tiles hold, where anything is known, and the other nothing."""
    table = read_geoparquet(source.read("tiles.parquet"))
    table = table.filter(pa.compute.equal(table["split"], experiment.evaluate.split)).sort_by("tile_id")
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(table.num_rows, 3)).astype(np.float32)
    told = noise if table["label"].null_count else np.array(table["label_fractions"].to_pylist(), np.float32) + 0.01 * noise
    return {
        name: rows.Row(encoder=trained, embedded=Embeddings(table=table, vectors=vectors, fingerprint="f" * 64, distance="euclidean"))
        for name, vectors in {"random-init": noise, "trained": told}.items()
    }


def evaluated(made):
    screen = io.StringIO()
    result = job.run(made, Console(io.StringIO(), screen))
    return result, screen.getvalue().splitlines()


def test_the_published_report_is_the_result_and_valid_json(experiment):
    made = experiment(relevance="label", objective="nDCG@5/graded", probes=["knn", "dt"])
    result, said = evaluated(made)
    version = made.open_workspace().report.current()
    report = json.loads(version.read("report.json"))
    assert {name: report[name] for name in report} == {name: getattr(result, name) for name in report}
    assert result.report.endswith("report.json")
    assert b"nDCG@5/graded" in version.read("report.html")
    assert report["differences"]["random-init"]["low"] > 0
    assert {(entry["target"], entry["split"]) for entry in report["probes"]} == {
        (target, split) for target in ("classes", "proportions") for split in ("ground", "random")
    }
    assert report["confusion"]["probe"] == "knn"
    assert report["protocol"]["image_statistics"] == "standardised on the train split"
    assert any("nDCG@5/graded" in line for line in said)
    assert any("summed_error" in line for line in said)


def test_the_plan_says_what_is_then_measured(experiment):
    made = experiment(relevance="label")
    told, result = job.preview(made), evaluated(made)[0]
    assert told["metrics"] == list(result.rows[0]["metrics"])
    assert told["queries"] == result.protocol["queries"]
    assert told["gallery"] == result.protocol["gallery"]
    assert told["units"] == f"{result.protocol['units']} spatial blocks"
    assert told["probes"] == [
        f"knn of {target}, 5 splits, {split}" for target in ("classes", "proportions") for split in ("ground", "random")
    ]


def test_fixed_queries_are_listed_beside_the_report(experiment):
    made = experiment(relevance="label", contact_sheets=4)
    evaluated(made)
    version = made.open_workspace().report.current()
    found = json.loads(version.read("results.json"))
    assert list(found["rows"]) == ["random-init", "trained"]
    assert [len(of_row["answers"]) for of_row in found["rows"].values()] == [4, 4]
    tiles = {row["tile_id"] for row in tile_table(labels=True).to_pylist() if row["split"] == "test"}
    assert {entry["tile_id"] for answer in found["rows"]["trained"]["answers"] for entry in answer["results"]} <= tiles
    assert found["random_pairs_km"] < 5


def test_a_second_scoring_leaves_classes_out_and_knows_their_names(experiment):
    result, said = evaluated(experiment(relevance="label", without_classes=["crops"]))
    assert result.without["classes"] == ["crops"]
    assert result.without["gallery"] < result.protocol["gallery"]
    assert any("the same without crops" in line for line in said)
    with pytest.raises(ConfigError, match=r"without_classes names 'corps', and the classes of the set are water, forest, crops"):
        job.preview(experiment(relevance="label", without_classes=["corps"]))


def test_a_set_without_labels_is_measured_by_retrieval_alone(experiment):
    result, _ = evaluated(experiment(labels=False))
    assert (result.probes, result.classes, result.confusion) == ([], {}, None)
    assert "MAP@R" in result.rows[0]["metrics"]
    assert not any("graded" in name or name == "gSil" for name in result.rows[0]["metrics"])
    assert "proportions" not in result.protocol


def test_one_report_after_another_is_counted(experiment):
    made = experiment()
    made.open_workspace().report.draft("test-cut-off").write("report.json", b"{}")
    assert [evaluated(made)[0].protocol["earlier_reports_on_this_split"] for _ in range(2)] == [0, 1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels": False, "objective": "nDCG@5/graded"}, "graded metrics need class proportions"),
        ({"objective": "recall@7"}, "is not measured here"),
        ({"split": "val"}, "no tile of the set belongs to the val split"),
        ({"labels": False, "relevance": "label"}, "relevance is label"),
    ],
)
@pytest.mark.parametrize("act", [job.preview, lambda made: job.run(made, Console(io.StringIO(), io.StringIO()))])
def test_what_cannot_be_answered_is_refused_before_anything_is_embedded(experiment, monkeypatch, settings, words, act):
    monkeypatch.setattr(job, "embed_rows", None)
    with pytest.raises(ConfigError, match=words):
        act(experiment(**settings))


class Embedding:
    """What `embed` and `read_embeddings` are asked, and vectors in their place."""

    def __init__(self, monkeypatch, bands=1):
        self.asked = []
        monkeypatch.setattr(rows, "wants_gpu", lambda _: False)
        monkeypatch.setattr(rows, "embed", self.embed)
        monkeypatch.setattr(
            rows, "read_embeddings", lambda name: Embeddings(table=name, vectors=vectors(bands), fingerprint="", distance="cosine")
        )

    def embed(self, _source, encoder, target, _console, *, splits, **_):
        self.asked.append((target.name.removeprefix("made-up-"), splits, encoder))
        return target.name


def vectors(bands=1):
    return np.random.default_rng(0).normal(size=(9, bands * SPEC.dim)).astype(np.float32)


@pytest.mark.parametrize(("kept", "split"), [({"train": 5, "test": 9}, "train"), ({"test": 9}, "test")])
def test_rows_are_embedded_in_the_order_of_the_table(experiment, monkeypatch, kept, split):
    made, embedding = experiment(), Embedding(monkeypatch)
    source = type("Source", (), {"manifest": {"counts": {"by_split": kept}, "bands": list(SPEC.bands)}})
    trained = {"model_json": SPEC.to_json(), "tensors": to_files(build_encoder(SPEC, 0), SPEC)["model.safetensors"]}
    found = rows.embed_rows(made, source, trained, Console(io.StringIO(), io.StringIO()))
    assert list(found) == rows.expected(made) == ["random-init", "image-statistics", "trained"]
    asked = {name: (splits, encoder) for name, splits, encoder in embedding.asked}
    assert asked["image-statistics-plain"][0] == (split,)
    assert asked["trained"] == (("test",), trained)
    scale = json.loads(asked["image-statistics"][1]["model_json"])
    np.testing.assert_allclose(scale["feature_mean"], vectors().astype(float).mean(0))


def test_an_encoder_that_hashes_stands_beside_what_its_codes_are_made_from(experiment, monkeypatch):
    made = build(Experiment, to_dict(experiment()) | {"model": {"projection": "hash"}})
    embedding = Embedding(monkeypatch)
    spec = dataclasses.replace(SPEC, kind="encoder", backbone="resnet10t", projection="hash", dim=16, input_size=32, distance="cosine")
    module = build_encoder(spec, 0).eval()
    files = to_files(module, spec)
    trained = {"model_json": files["model.json"], "tensors": files["model.safetensors"]}
    source = type("Source", (), {"manifest": {"counts": {"by_split": {"test": 9}}, "bands": list(SPEC.bands)}})
    found = rows.embed_rows(made, source, trained, Console(io.StringIO(), io.StringIO()))
    assert list(found) == rows.expected(made) == ["random-init", "image-statistics", "trained-float", "trained"]
    asked = {name: encoder for name, _, encoder in embedding.asked}
    pixels = torch.randint(0, 255, (3, len(SPEC.bands), SPEC.tile_size, SPEC.tile_size))
    with torch.inference_mode():
        assert torch.equal(from_files(**asked["trained-float"]).module(pixels), module.activations(pixels))


@pytest.mark.parametrize("act", [job.preview, lambda made: job.run(made, Console(io.StringIO(), io.StringIO()))])
def test_a_split_without_anything_to_find_is_refused_before_anything_is_embedded(experiment, monkeypatch, act):
    monkeypatch.setattr(job, "embed_rows", None)
    with pytest.raises(TrainingError, match=r"no tile of the test split .*widen evaluate\.radius"):
        act(experiment(radius=0.5))


def test_a_row_that_could_not_be_made_is_a_caution(experiment):
    cautions = evaluated(experiment(weights="timm"))[0].protocol["cautions"]
    assert any("no row frozen-pretrained" in caution for caution in cautions)
    assert not any("no row random-init" in caution for caution in cautions)


@pytest.mark.parametrize(("keys", "said"), [({"whitening": 0.3}, 1), ({}, 0)])
def test_what_whitening_gives_is_not_taken_for_training(experiment, monkeypatch, keys, said):
    made = experiment()
    made = build(Experiment, to_dict(made) | {"model": {"pretrained": "timm", **keys}})
    monkeypatch.setattr(job, "embed_rows", lambda *given: {"frozen-pretrained": made_up(*given)["random-init"], **made_up(*given)})
    cautions = evaluated(made)[0].protocol["cautions"]
    assert sum("trained minus frozen-pretrained holds what model.whitening gives" in caution for caution in cautions) == said


def test_a_probe_of_pixels_needs_a_label_map(experiment):
    with pytest.raises(ConfigError, match=r"rasters\.label_map"):
        job.preview(experiment(segmentation={}))


def test_a_probe_of_pixels_needs_training_tiles_and_stands_in_the_plan(experiment, monkeypatch):
    raw = to_dict(experiment(segmentation={"tiles": 7}))
    made = build(Experiment, raw | {"rasters": raw["rasters"] | {"label_map": {"uri": "x.tif", "classes": {1: "water"}}}})
    assert job.preview(made)["segmentation"] == "at most 7 tiles each of the train and the test split"
    monkeypatch.setattr(job, "tiles_of", lambda *_: 0)
    with pytest.raises(ConfigError, match="fitted on training tiles, and the set has none"):
        job.preview(made)


@pytest.mark.parametrize("alone", [False, True])
def test_an_encoder_that_fuses_stands_beside_itself_without_either_modality(experiment, monkeypatch, alone):
    """Of a set without maps, beside the same rows but those two; the statistics are of the bands that are there."""
    made = build(Experiment, to_dict(experiment()) | {"model": {"fusion": {"maps": {"dem": []}}}})
    embedding, pixels = Embedding(monkeypatch, 1 if alone else 2), torch.randint(0, 255, (3, 2, SPEC.tile_size, SPEC.tile_size))
    changes = {"kind": "encoder", "backbone": "resnet10t", "projection": "linear", "dim": 16, "input_size": 32, "distance": "cosine"}
    spec = dataclasses.replace(SPEC, **changes, bands=("red", "dem"), mean=(0.0, 5.0), std=(1.0, 2.0), maps=("dem",), codes=((),))
    module = build_encoder(spec, 0).eval()
    files = to_files(module, spec)
    trained = {"model_json": files["model.json"], "tensors": files["model.safetensors"]}
    bands = list(spec.imagery if alone else spec.bands)
    source = type("Source", (), {"manifest": {"counts": {"by_split": {"test": 9}}, "bands": bands}})
    found = rows.embed_rows(made, source, trained, Console(io.StringIO(), io.StringIO()))
    assert list(found) == [name for name in rows.expected(made) if not (alone and name in rows.ALONE)]
    asked = {name: from_files(**encoder) for name, _, encoder in embedding.asked}
    assert asked["image-statistics"].spec.bands == tuple(bands)
    if not alone:
        assert list(found)[-3:] == ["trained-imagery", "trained-maps", "trained"]
        with torch.inference_mode():
            expected = module(pixels[:, : len(spec.imagery)])
            torch.testing.assert_close(asked["trained-imagery"].module.eval()(pixels), expected)
