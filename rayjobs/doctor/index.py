"""An index that answers badly: whether the index, the encoder or the imagery is at fault."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from rayjobs.doctor import encoder, searching, seen
from rayjobs.doctor.checks import Check, Look, Patient, looked, ok
from rayjobs.doctor.opened import open_index, pixels_of
from rayjobs.retrieval.manifest import read_index_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from rayjobs.doctor.opened import Opened
    from rayjobs.experiment import Experiment

_TILES = 256
"""Tiles whose pixels are looked at."""


def looks(patient: Patient) -> dict[str, Look]:
    """Return what to look at."""
    if patient.experiment is None:
        return {}
    return {"index/manifest": functools.partial(examined, patient.experiment, patient.folder)}


def examined(experiment: Experiment, cache: Path) -> list[Check]:
    """Look at the current version of an experiment's index; `cache` takes copies of what lies in a bucket."""
    workspace = experiment.open_workspace()
    version = workspace.index.require("run `rayjobs index` first")
    manifest = read_index_manifest(version.manifest, version.store.address(version.prefix))
    size = f"{manifest.stored:,} vectors of {manifest.dimension} numbers, {manifest.deleted:,} deleted"
    opened = open_index(version, manifest, cache)
    first = [ok("index/manifest", f"{workspace.index.name} {version.version}: {size}, kind {manifest.kind}"), searching.digests(opened)]
    asked: dict[str, Look] = {
        "index/encoder": functools.partial(encoder.fingerprint, opened),
        "index/checkpoint": functools.partial(encoder.checkpoint, opened, experiment),
    }
    return [*first, *looked(asked), *(_of_tiles(opened) if opened.tiles else [])]


def _of_tiles(opened: Opened) -> list[Check]:
    asked: dict[str, Look] = {
        "index/self-retrieval": functools.partial(searching.self_retrieval, opened),
        "index/recall": functools.partial(searching.recall, opened),
        "encoder/length": functools.partial(encoder.length, opened),
        "imagery/pixels": functools.partial(_of_pixels, opened),
        "imagery/stripes": functools.partial(seen.stripes, opened),
    }
    checks = list(looked(asked))
    if any(check.name == "encoder/collapse" for check in checks):
        return checks
    return [*checks, *looked({"encoder/collapse": functools.partial(encoder.collapse, opened, constant=0.0)})]


def _of_pixels(opened: Opened) -> list[Check]:
    pixels = pixels_of(opened, _TILES)
    asked: dict[str, Look] = {
        "encoder/anew": functools.partial(encoder.anew, opened, pixels),
        "imagery/constant": functools.partial(seen.constant, pixels),
        "imagery/invalid": functools.partial(seen.invalid, pixels),
        "encoder/collapse": functools.partial(encoder.collapse, opened, constant=seen.constant_share(pixels)),
    }
    return list(looked(asked))
