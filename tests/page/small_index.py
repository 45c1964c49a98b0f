"""A real index of real imagery, and the service in front of it under uvicorn: everything but Ray."""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import uvicorn

from rayjobs.config import build
from rayjobs.embed.stack import stack, stack_arrays
from rayjobs.experiment import Experiment
from rayjobs.models import encoder as encoders
from rayjobs.models.checkpoint import from_files, to_files
from rayjobs.models.section import ModelSection, spec_of
from rayjobs.rasters.uploads import UploadLimits
from rayjobs.retrieval.kinds import Effort
from rayjobs.retrieval.manifest import IndexManifest
from rayjobs.retrieval.segments import build_segment
from rayjobs.sample import job as sampling
from rayjobs.sample.plan import plan_set
from rayjobs.sample.read import ReadPlan, read_shard
from rayjobs.serve.answers import Answers
from rayjobs.serve.api import build_api, current_service
from rayjobs.serve.labelling import Labelling
from rayjobs.serve.section import ServiceSection
from rayjobs.serve.tokens import tokens_of
from rayjobs.storage import Artefact, open_store
from rayjobs.tiles import chips
from rayjobs.tiles.table import read_geoparquet

_BATCH = 128
_MEBIBYTE = 2**20


def experiment_of(name, workspace, rasters, tiles):
    """An experiment by its sections as they stand in a file."""
    return build(Experiment, {"name": name, "workspace": {"uri": workspace}, "rasters": rasters, "tiles": tiles})


def sampled(experiment):
    """Sample and publish a set, in this process."""
    plan = plan_set(experiment.rasters, experiment.tiles)
    store = open_store(experiment.workspace.uri)
    draft = Artefact(store, "sets", experiment.name).draft("one")
    read_plan = ReadPlan(
        store=store, prefix=draft.prefix, dtype=plan.dtype, physical=plan.physical, tile_size=None, min_valid_fraction=0.9, label_map=None
    )  # fmt: skip
    reports = [read_shard(shard, plan=read_plan) for shard in sampling._shards(plan)]
    return sampling._publish(experiment, plan, draft, reports, None)


def random_encoder(source, *, backbone="resnet10t", dim=16, side=32):
    """An encoder whose weights were never trained, for a set."""
    manifest = source.manifest
    section = ModelSection(backbone=backbone, dim=dim, input_size=side)
    spec = spec_of(
        section, bands=manifest["bands"], mean=manifest["band_mean"], std=manifest["band_std"], dtype=manifest["dtype"],
        tile_size=manifest["tile_size"] or side, resolution_m=manifest["resolution_m"],
    )  # fmt: skip
    return to_files(encoders.build(spec, seed=0), spec)


def indexed(source, files, *, version="one"):
    """Embed a set by an encoder (`model.json`, `model.safetensors`) and publish an index of it."""
    return published(source, *built(source, files), version=version)


def built(source, files):
    """Embed a set by an encoder, and return the files of an index of it and the fields of its manifest."""
    encoder = from_files(files["model.json"], files["model.safetensors"])
    encoder.module.eval()
    of_set = f"{source.manifest['name']}/{source.version}"
    tiles = read_geoparquet(source.read("tiles.parquet")).replace_schema_metadata(None)
    tiles = tiles.append_column("set", pa.repeat(of_set, len(tiles)))
    vectors = np.empty((tiles.num_rows, encoder.spec.dim), np.float32)
    row_of = {tile_id: row for row, tile_id in enumerate(tiles["tile_id"].to_pylist())}
    for shard in range(source.manifest["shards"]):
        found = chips.read_chips(source.read(chips.shard_name(shard)), row_of)
        for start in range(0, len(found), _BATCH):
            batch = found[start : start + _BATCH]
            with torch.inference_mode():
                vectors[[row_of[chip.tile_id] for chip in batch]] = encoder.module(*stack(batch, encoder.spec.tile_size)).numpy()
    entry, written = build_segment("segment-00000", vectors, tiles, kind="flat", quantiser=None)
    manifest = IndexManifest(
        encoder_uri="encoder", encoder_fingerprint=encoder.fingerprint, distance="cosine", dimension=encoder.spec.dim, kind="flat",
        why="as small as it is", effort=Effort(), recall=None, quantiser=None, segments=(entry,), deleted=0,
    )  # fmt: skip
    data = {**written, **{f"encoder/{name}": data for name, data in files.items()}}
    return data, {"parents": {"set": of_set}, "counts": {"rows": tiles.num_rows}, **manifest.fields()}


def published(source, files, fields, *, version):
    """Publish an index that is built."""
    draft = Artefact(source.store, "indexes", source.manifest["name"]).draft(version)
    for name, data in files.items():
        draft.write(name, data)
    return draft.publish(fields)


class Here:
    """The service's deployment, without Ray: one index version, its encoder in this process."""

    last_error = None

    def __init__(self, version):
        self.answers = Answers(version, cache=Path(tempfile.mkdtemp(prefix="rayjobs-page-")), max_limit=1000)
        self.versions = [version.version]
        self.labelling = Labelling(version.store, lease_s=300)
        self._encoder = from_files(version.read("encoder/model.json"), version.read("encoder/model.safetensors"))
        self._encoder.module.eval()

    def pinned(self, version):
        assert version in {None, self.answers.version}
        return self.answers

    def uploads_for(self, answers):
        return UploadLimits(modalities=answers.spec.modalities, dtype=answers.spec.dtype, max_pixels=25_000_000, max_bytes=256 * _MEBIBYTE)

    async def embed(self, pixels, valid, answers):
        with torch.inference_mode():
            return self._encoder.module(*stack_arrays([(pixels, valid)], answers.spec.tile_size)).numpy()[0]


@contextlib.contextmanager
def served(version, *, token=None, label_tokens=None, port=0):
    """Serve an index version under uvicorn for the length of the block, and yield its address."""
    service = Here(version)
    variables = {"RAYJOBS_TOKEN": token, "RAYJOBS_LABEL_TOKENS": label_tokens}
    tokens = tokens_of({name: value for name, value in variables.items() if value}, required=False)
    api = build_api(ServiceSection(access_log=False), tokens=tokens)
    api.dependency_overrides[current_service] = lambda: service
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        host, bound = server.servers[0].sockets[0].getsockname()
        yield f"http://{host}:{bound}"
    finally:
        server.should_exit = True
        thread.join()


def main(uri, name, port):
    """Serve what a workspace holds, to look at."""
    with served(Artefact(open_store(uri), "indexes", name).require("build it first"), port=port) as address:
        print(json.dumps({"address": address}), flush=True)  # noqa: T201
        threading.Event().wait()
