"""An index version's manifest and its tombstones: written, read, refused."""

from __future__ import annotations

import dataclasses

import pytest

from rayjobs.errors import IndexCorruptError
from rayjobs.retrieval.kinds import Effort
from rayjobs.retrieval.manifest import (
    TOMBSTONES,
    IndexManifest,
    RecallEstimate,
    SegmentEntry,
    read_index_manifest,
    read_tombstones,
    tombstone_bytes,
)
from rayjobs.storage import Artefact, open_store


def good_manifest():
    entry = SegmentEntry(name="segment-00000", rows=3, bounds=(1.0, 2.0, 3.0, 4.0), dates=("a", "b"))
    return IndexManifest(
        encoder_uri="encoder",
        encoder_fingerprint="ab" * 32,
        distance="cosine",
        dimension=4,
        kind="ivf_pq",
        why="large",
        effort=Effort(nprobe=12, k_factor=8),
        recall=RecallEstimate(at=10, value=0.97, queries=500),
        quantiser="cd" * 32,
        segments=(entry,),
        deleted=1,
    )


def test_a_manifest_comes_back_as_it_went():
    assert read_index_manifest(good_manifest().fields(), "here") == good_manifest()


def hostile(**changes):
    fields = good_manifest().fields()["index"]
    segment = {name.removeprefix("segment_"): changes.pop(name) for name in list(changes) if name.startswith("segment_")}
    return {"index": fields | changes | {"segments": [fields["segments"][0] | segment]}}


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"index": None},
        {"index": []},
        hostile(surprise=1),
        hostile(dimension=0),
        hostile(dimension=10**9),
        hostile(dimension="4"),
        hostile(distance="hamming"),
        hostile(encoder_fingerprint="ab"),
        hostile(encoder_fingerprint="ab" * 32 + "\n"),
        hostile(kind="hologram"),
        hostile(kind=["flat"]),
        hostile(kind="flat"),  # with a quantiser
        hostile(quantiser=None),  # of a kind that trains
        hostile(quantiser="../quantiser"),
        hostile(effort={"nprobe": 0, "ef": None, "k_factor": None}),
        hostile(effort={"nprobe": "all", "ef": None, "k_factor": None}),
        hostile(effort={"speed": 3}),
        hostile(effort=None),
        hostile(recall={"at": 10, "value": 1.5, "queries": 5}),
        hostile(recall={"at": 0, "value": 0.5, "queries": 5}),
        hostile(deleted=-1),
        hostile(deleted=4),
        hostile(deleted=["t"]),
        hostile(segment_name="../../etc/passwd"),
        hostile(segment_name="segment-00000\n"),
        hostile(segment_name="segment-\u0966\u0966\u0966\u0966\u0966"),
        hostile(segment_rows=0),
        hostile(segment_rows=-1),
        hostile(segment_rows=2.5),
        hostile(segment_bounds=[1.0, 2.0]),
        {"index": good_manifest().fields()["index"] | {"segments": []}},
        {"index": good_manifest().fields()["index"] | {"segments": good_manifest().fields()["index"]["segments"] * 2}},
    ],
    ids=str,
)
def test_a_hostile_manifest_is_refused(manifest):
    with pytest.raises(IndexCorruptError, match="here"):
        read_index_manifest(manifest, "here")


def deleting(folder, data, deleted):
    draft = Artefact(open_store(f"file:{folder}"), "indexes", "test").draft("v1")
    if data is not None:
        draft.write(TOMBSTONES, data)
    version = draft.publish({"parents": {}, "counts": {}})
    return version, dataclasses.replace(good_manifest(), deleted=deleted)


def test_tombstones_come_back_sorted_and_once(tmp_path):
    assert read_tombstones(*deleting(tmp_path, tombstone_bytes(["b", "a", "b"]), 2)) == ("a", "b")


def test_where_nothing_is_deleted_no_file_is_asked_for(tmp_path):
    assert read_tombstones(*deleting(tmp_path, None, 0)) == ()


@pytest.mark.parametrize(("data", "deleted"), [(tombstone_bytes(["a", "b"]), 3), (tombstone_bytes(["a"]), 2), (b"PAR1rubbishPAR1", 1)])
def test_tombstones_that_are_not_what_the_manifest_says_are_refused(tmp_path, data, deleted):
    with pytest.raises(IndexCorruptError, match=TOMBSTONES):
        read_tombstones(*deleting(tmp_path, data, deleted))
