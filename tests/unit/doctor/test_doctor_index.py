"""`rayjobs doctor --index` on a real small index, spoiled in each way: each fault is told as its own, and what is healthy is not blamed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from rayjobs.doctor import index
from rayjobs.doctor.checks import Patient, looked
from rayjobs.doctor.encoder import LEAST_COSINE, spread_of
from rayjobs.doctor.opened import open_index
from rayjobs.doctor.searching import found_first
from rayjobs.index.versions import newest
from rayjobs.models.checkpoint import from_files
from rayjobs.retrieval.kinds import KINDS
from rayjobs.retrieval.manifest import TOMBSTONES, RecallEstimate, read_index_manifest, tombstone_bytes
from rayjobs.retrieval.segments import load_segment
from rayjobs.serve import trial
from rayjobs.storage import Version
from tests.unit.doctor.doctor_made import COLUMNS, ROWS, SIZE, Made, encoder_files, faults, ground

FIRST = "segment-00000"


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path / "workspace")


def stored(made):
    """The vectors of the first segment."""
    published = newest(made.workspace.index)
    segment = load_segment(published.version, published.manifest.segments[0], published.manifest, Path("/nonexistent"))
    return segment.vectors_of(np.arange(segment.rows))


def flat(vectors):
    kind = KINDS["flat"]
    return kind.dumped(kind.filled(kind.trained(vectors[:1]), vectors))


@pytest.mark.parametrize("kind", ["flat", "hnsw", "sq8"])
def test_a_healthy_index_has_no_fault(tmp_path, kind):
    made = Made(tmp_path / "workspace", kind=kind)
    made.checkpoint(made.files)
    checks = made.checks(tmp_path)
    assert {name: check.finding for name, check in checks.items() if check.state != "ok"} == {}
    assert set(checks) == {
        "index/manifest", "index/digests", "index/encoder", "index/checkpoint", "index/self-retrieval", "index/recall",
        "encoder/length", "encoder/anew", "encoder/collapse", "imagery/constant", "imagery/invalid", "imagery/stripes",
    }  # fmt: skip


def test_the_cosine_asked_for_is_that_of_the_service():
    assert LEAST_COSINE == trial.LEAST_COSINE


@pytest.mark.parametrize("name", [f"{FIRST}.vectors", f"{FIRST}.parquet", "experiment.yaml"])
def test_an_altered_file_is_the_indexs_fault_and_the_rest_is_looked_at(made, tmp_path, name):
    made.damage(name)
    checks = made.checks(tmp_path)
    assert faults(checks) == {"index/digests"}
    assert "differs from its manifest" in checks["index/digests"].finding
    assert "rollback" in checks["index/digests"].remedy
    assert checks["index/self-retrieval"].finding.startswith(f"of {252 if name == 'experiment.yaml' else 126} stored")


def test_codes_of_other_vectors_are_the_indexs_fault(tmp_path):
    made = Made(tmp_path / "workspace", kind="sq8")
    vectors = np.random.default_rng(1).permutation(stored(made))
    kind = KINDS["sq8"]
    quantiser = newest(made.workspace.index).version.read("quantiser.faiss")
    made.replace(f"{FIRST}.faiss", kind.dumped(kind.filled(kind.read_quantiser(quantiser, 16), vectors)))
    checks = made.checks(tmp_path)
    assert faults(checks) == {"index/self-retrieval", "index/recall"}
    assert "the manifest promises 1.000" in checks["index/recall"].finding


def test_a_promise_that_is_not_kept_is_the_indexs_fault(tmp_path):
    made = Made(tmp_path / "workspace", kind="binary")
    published = newest(made.workspace.index)
    kept = made.checks(tmp_path)["index/recall"]
    assert kept.state == "ok"
    lazy = published.manifest.effort.__class__(k_factor=1)
    made.replace("", b"", effort=lazy, recall=RecallEstimate(at=10, value=0.99, queries=4000))
    checks = made.checks(tmp_path)
    assert "index/recall" in faults(checks) <= {"index/recall", "index/self-retrieval"}


def test_rows_that_are_mixed_up_are_the_indexs_fault_and_not_the_encoders(made, tmp_path):
    made.replace(f"{FIRST}.vectors", flat(np.roll(stored(made), 1, axis=0)))
    checks = made.checks(tmp_path)
    assert "index/rows" in faults(checks) <= {"index/rows", "imagery/stripes"}
    assert "rows are mixed up" in checks["index/rows"].finding


def test_an_encoder_that_makes_other_vectors_is_the_encoders_fault(made, tmp_path):
    other = encoder_files(1)
    made.replace("encoder/model.safetensors", other["tensors"], encoder_fingerprint=from_files(**other).fingerprint)
    assert faults(made.checks(tmp_path)) == {"encoder/anew"}


def test_an_encoder_that_its_manifest_does_not_name_is_told(made, tmp_path):
    made.replace("", b"", encoder_fingerprint="0" * 64)
    assert faults(made.checks(tmp_path)) == {"index/encoder"}


def test_an_index_of_an_older_checkpoint_is_told(made, tmp_path):
    made.checkpoint(encoder_files(1))
    checks = made.checks(tmp_path)
    assert faults(checks) == {"index/checkpoint"}
    assert "rayjobs index" in checks["index/checkpoint"].remedy


@pytest.mark.parametrize("factor", [3.0, np.nan])
def test_vectors_that_are_not_of_length_1_are_the_encoders_fault(made, tmp_path, factor):
    vectors = stored(made)
    vectors[7] *= factor
    made.replace(f"{FIRST}.vectors", flat(vectors))
    checks = made.checks(tmp_path)
    assert "encoder/length" in faults(checks) <= {"encoder/length", "encoder/anew"}
    assert "1 of 252 vectors" in checks["encoder/length"].finding


def test_an_encoder_that_gives_all_tiles_one_vector_is_the_encoders_fault(tmp_path):
    checks = Made(tmp_path / "workspace", files=encoder_files(0, 1e5)).checks(tmp_path)
    assert faults(checks) == {"encoder/collapse"}
    assert "do not" not in checks["index/self-retrieval"].finding  # ties are found


def test_vectors_along_one_line_are_collapsed_though_they_are_far_apart(made):
    angles = np.random.default_rng(0).uniform(-0.4, 0.4, 500)
    line = np.zeros((500, 16))
    line[:, 0], line[:, 1] = np.cos(angles), np.sin(angles)
    found = spread_of(line)
    assert found.rank < 2
    assert found.median < 0.98
    even = spread_of(np.random.default_rng(0).standard_normal((4000, 16)) / 4)
    assert even.rank == pytest.approx(16, rel=0.01)
    assert even.deviation == pytest.approx(0.25, rel=0.05)  # 1 / sqrt(16)


def test_tiles_that_show_nothing_are_the_imagerys_fault_and_not_the_encoders(tmp_path):
    pixels = ground()
    pixels[:, :, : (COLUMNS - 4) * SIZE] = 90
    checks = Made(tmp_path / "workspace", pixels=pixels).checks(tmp_path)
    assert "imagery/constant" in faults(checks) <= {"imagery/constant", "imagery/stripes"}  # where they end is a seam, too
    assert checks["imagery/constant"].finding.startswith("the imagery is at fault: 77.8% of 252 tiles")
    assert "near-duplicate" in checks["index/self-retrieval"].finding
    pixels[:] = 90
    checks = Made(tmp_path / "other", pixels=pixels).checks(tmp_path)
    assert faults(checks) == {"imagery/constant"}
    assert checks["encoder/collapse"].state == "caution"


def test_pixels_that_are_invalid_are_the_imagerys_fault(tmp_path):
    valid = np.arange(ROWS * SIZE)[:, None] * np.ones(COLUMNS * SIZE) % 8 < 3
    checks = Made(tmp_path / "workspace", valid=valid).checks(tmp_path)
    assert faults(checks) == {"imagery/invalid"}
    assert "62.5% of the pixels" in checks["imagery/invalid"].finding


def test_a_value_that_looks_like_nodata_is_said(tmp_path):
    pixels = ground()
    pixels[:, :, ::4] = 0
    checks = Made(tmp_path / "workspace", pixels=pixels).checks(tmp_path)
    assert checks["imagery/invalid"].state == "caution"
    assert "25.0% of the valid ones have the value 0 in every band" in checks["imagery/invalid"].finding


@pytest.mark.parametrize("way", ["rows", "columns"])
def test_stripes_along_tile_edges_are_the_imagerys_fault(tmp_path, way):
    count = ROWS if way == "rows" else COLUMNS
    steps = np.random.default_rng(5).normal(0, 30, count).repeat(SIZE)
    pixels = np.clip(ground() + (steps[:, None] if way == "rows" else steps[None, :]), 1, 254).astype(np.uint8)
    checks = Made(tmp_path / "workspace", pixels=pixels).checks(tmp_path)
    assert faults(checks) == {"imagery/stripes"}
    other = "columns" if way == "rows" else "rows"
    assert f"{way} have" in checks["imagery/stripes"].finding
    assert f"{other} have" in checks["imagery/stripes"].finding


def test_tiles_whose_pixels_are_gone_are_told_and_the_rest_is_looked_at(made, tmp_path):
    made.workspace.store.delete("sets/made/s1/manifest.json")
    checks = made.checks(tmp_path)
    assert faults(checks) == {"imagery/pixels"}
    assert checks["encoder/collapse"].state == "ok"


def test_equal_vectors_tie_and_none_of_them_is_missed(made, tmp_path):
    """Of 20 equal vectors a search for ten hits shows ten; each of the 20 is found all the same."""
    vectors = stored(made)
    vectors[:20] = vectors[0]
    made.replace(f"{FIRST}.vectors", flat(vectors))
    published = newest(made.workspace.index)
    opened = open_index(published.version, published.manifest, tmp_path)
    found = found_first(opened, opened.drawn(1000))
    assert len(found.missed) == 0
    assert found.twins.tolist() == list(range(20))


def test_deleted_tiles_are_not_looked_at(made, tmp_path):
    ids = [chip.tile_id for chip, _ in made.cuts[:5]]
    published = newest(made.workspace.index)
    opened = open_index(published.version, published.manifest, tmp_path)
    made.workspace.store.write(f"{published.version.prefix}{TOMBSTONES}", tombstone_bytes(ids))
    assert opened.tiles == 252
    entry = {"name": TOMBSTONES, "sha256": hashlib.sha256(tombstone_bytes(ids)).hexdigest(), "size": len(tombstone_bytes(ids))}
    raw = {**published.version.manifest, "files": [*published.version.manifest["files"], entry]}
    raw["index"] = {**raw["index"], "deleted": 5}
    version = Version(published.version.store, published.version.prefix, raw)
    again = open_index(version, read_index_manifest(raw, "here"), tmp_path)
    assert (again.tiles, again.damage) == (247, ())
    known = again.known(again.drawn(1000), ("tile_id",))
    assert not {one["tile_id"] for one in known} & set(ids)


def test_an_index_that_is_not_there_is_one_fault(tmp_path):
    made = Made(tmp_path / "workspace")
    made.workspace.store.delete("indexes/made/CURRENT")
    experiment = made.experiment
    patient = Patient(experiment=experiment, ray=experiment.ray, tracking=experiment.tracking, folder=tmp_path, say=lambda _: None)
    [check] = looked(index.looks(patient))
    assert (check.name, check.state, check.remedy) == ("index/manifest", "fault", "run `rayjobs index` first")
