"""Imagery that is damaged, slow, refused, poisonous or larger than memory, and readers that die."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio

from rayjobs.geo import Window
from rayjobs.rasters.reader import RasterReader
from rayjobs.storage import Artefact
from rayjobs.tiles import chips
from rayjobs.tiles.table import read_geoparquet
from tests import faulty_s3, seaweed
from tests.faults.conftest import FULL
from tests.three_nodes import ROOT, options, write_scene
from tests.unit.rasters.rasters_made import files, found

SIDE = 32
"""Pixels of a scene of D1, which has four tiles."""


def small_scene(path, number, **profile):
    values = np.random.default_rng(number).random((3, SIDE, SIDE)).astype(np.float32)
    place = rasterio.Affine(10, 0, 400000 + 2000 * (number % 40), 0, -10, 4100000 - 2000 * (number // 40))
    settings = {"driver": "GTiff", "dtype": "float32", "count": 3, "width": SIDE, "height": SIDE, "crs": "EPSG:32612", "transform": place}
    with rasterio.open(path, "w", **settings, tiled=True, blockxsize=16, blockysize=16, compress="deflate", **profile) as file:
        file.write(values)
    return values


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-200] ^= 4
    path.write_bytes(bytes(data))


def no_header(path):
    path.write_bytes(b"\0" * 64 + path.read_bytes()[64:])


def filled(path, value):
    with rasterio.open(path, "r+") as file:
        file.write(np.full((3, SIDE, SIDE), value, np.float32))


DAMAGES = [cut_off, emptied, flipped, no_header, lambda path: filled(path, np.nan), lambda path: filled(path, np.inf), cut_off]


@pytest.mark.fault("D1")
def test_damaged_scenes_among_good_ones(cluster, config, s3_server, store_of, row, tmp_path):
    """Of 5 % of the scenes nothing, or a part, can be read: all other tiles are there, bit by bit, and each that is not is told of."""
    count = row.tries // 4
    truth = {f"scene-{number:04}": small_scene(tmp_path / f"scene-{number:04}.tif", number) for number in range(count)}
    bad = [f"scene-{number:04}" for number in range(7, count, 20)]
    for name, damage in zip(bad, itertools.cycle(DAMAGES), strict=False):
        damage(tmp_path / f"{name}.tif")
    bucket = s3_server.bucket(f"damaged-{secrets.token_hex(4)}")
    sources = ["--rasters.sources", json.dumps([files(tmp_path / "*.tif")]), "--tiles.min_valid_fraction", "0.5"]
    done = cluster.run("sample", *options(config, bucket, *sources, "--rasters.max_bad_fraction", "0.1"))
    assert done.code == 0, done.err
    version = Artefact(store_of(bucket), "sets", "made-up").current()
    tiles = read_geoparquet(version.read("tiles.parquet")).to_pylist()
    by_scene = {name: [tile for tile in tiles if tile["scene_id"] == name] for name in truth}
    assert {name for name, kept in by_scene.items() if len(kept) == 4} >= set(truth) - set(bad)
    for tile in tiles:
        [chip] = chips.read_chips(version.read(chips.shard_name(tile["shard"])), {tile["tile_id"]})
        expected = truth[tile["scene_id"]][:, tile["row"] : tile["row"] + 16, tile["col"] : tile["col"] + 16]
        np.testing.assert_array_equal(chip.pixels, expected)
    counts = done.result["counts"]
    quarantined = pq.read_table(io.BytesIO(version.read("quarantine.parquet"))).to_pylist()
    assert len(quarantined) == counts["unreadable"] + counts["sparse"] + counts["unreadable_files"]
    assert all(entry["reason"] for entry in quarantined)
    assert counts["kept"] + counts["unreadable"] + counts["sparse"] == counts["planned"]
    refused = cluster.run("sample", *options(config, bucket, *sources, "--name", "strict", "--rasters.max_bad_fraction", "0.01"))
    assert refused.code == 1
    assert "rasters.max_bad_fraction" in refused.err.strip().splitlines()[-1]
    row.lost = f"{len(quarantined)} tiles and files, each with its reason; no other"


@pytest.fixture(scope="module")
def in_bucket(cluster, config, s3_server, store_of, tmp_path_factory):
    """A scene in a bucket, the options that sample it, and the files of the set when nothing goes wrong, with the seconds that took."""
    bucket = s3_server.bucket(f"imagery-{secrets.token_hex(4)}")
    side = 1024 if FULL else 512
    uri = s3_server.upload(write_scene(tmp_path_factory.mktemp("remote") / "remote.tif", side=side), f"{bucket}/remote.tif")
    sources = ["--rasters.sources", json.dumps([files(uri)])]
    begun = time.monotonic()
    done = cluster.run("sample", *options(config, bucket, *sources, "--name", "clean"))
    assert done.code == 0, done.err
    return bucket, sources, files_of(store_of, bucket, "clean"), time.monotonic() - begun


def files_of(store_of, bucket, name):
    entries = Artefact(store_of(bucket), "sets", name).current().files
    return {entry.name: (entry.sha256, entry.size) for entry in entries if entry.name != "experiment.yaml"}


@pytest.mark.fault("D2")
def test_a_bucket_that_fails_now_and_then(cluster, config, s3_server, store_of, in_bucket, row):
    """30 % of the answers are 500 or 503, 10 % are cut short, some take 5 s; a 403 or 404 ends it at once and names the object."""
    bucket, sources, expected, clean_s = in_bucket
    chance = random.Random(2)
    with faulty_s3.before(s3_server.endpoint) as faulty:

        def rule(method, path):
            if method != "GET" or "remote.tif" not in path:
                return None
            drawn = chance.random()
            return "500" if drawn < 0.15 else "503" if drawn < 0.3 else "cut" if drawn < 0.4 else 5.0 if drawn < 0.42 else None

        faulty.rule = rule
        begun = time.monotonic()
        done = cluster.run("sample", *options(config, bucket, *sources, "--name", "shaky"), AWS_ENDPOINT_URL=faulty.endpoint)
        seconds = time.monotonic() - begun
        assert done.code == 0, done.err
        assert len(faulty.faults) > 5
        assert files_of(store_of, bucket, "shaky") == expected, "all tiles, and no wrong pixel"
        hit = len(faulty.faults)
        for status in ("403", "404"):
            faulty.rule = lambda _method, path, status=status: status if "remote.tif" in path else None
            refused = cluster.run("sample", *options(config, bucket, *sources, "--name", "refused"), AWS_ENDPOINT_URL=faulty.endpoint)
            assert refused.code == 1
            assert "remote.tif" in refused.err.strip().splitlines()[-1]
    row.tries = hit
    row.lost, row.recovered = "no tile, no pixel", f"{seconds / clean_s:.1f} times the time without faults"
    assert seconds <= 3 * clean_s + 15


def credential_process(folder, current):
    """Write an AWS configuration whose credentials last two minutes and are what stands in a file; return the variables that name it."""
    script = folder / "credentials.sh"
    script.write_text(
        f"""read -r key secret < {current}
until=$(date -u -d '+2 minutes' +%Y-%m-%dT%H:%M:%SZ)
printf '{{"Version": 1, "AccessKeyId": "%s", "SecretAccessKey": "%s", "Expiration": "%s"}}' "$key" "$secret" "$until"
"""
    )
    (folder / "config").write_text(f"[default]\ncredential_process = sh {script}\nregion = us-east-1\n")
    return {"AWS_CONFIG_FILE": str(folder / "config"), "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.mark.fault("D2 keys")
def test_credentials_that_expire_while_tiles_are_read(cluster, config, s3_server, store_of, in_bucket, row, tmp_path):
    """As on nodes with a role: keys are refused from one request to the next, and whoever asks is given others."""
    bucket, sources, expected, _ = in_bucket
    current, reads = tmp_path / "current", itertools.count(1)
    current.write_text(f"{seaweed.KEY} {seaweed.SECRET}\n")
    ours = {name: value for name, value in cluster.environment.items() if not name.startswith(("RAY_", "AWS_ACCESS", "AWS_SECRET"))}
    with faulty_s3.before(s3_server.endpoint) as faulty:

        def renewed_after_some(method, path):
            if method == "GET" and "remote.tif" in path and next(reads) == 12:
                current.write_text(f"{seaweed.NEXT_KEY} {seaweed.NEXT_SECRET}\n")
                faulty.expired.add(seaweed.KEY)

        faulty.rule = renewed_after_some
        named = [*options(config, bucket, *sources, "--name", "renewed")]
        done = subprocess.run(
            [sys.executable, "-m", "rayjobs.sample", *named],
            cwd=ROOT,
            env=ours | credential_process(tmp_path, current) | {"AWS_ENDPOINT_URL": faulty.endpoint},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        refused = [path for _, path, fault in faulty.faults if fault == "expired"]
    assert any("remote.tif" in path for path in refused), "somebody still had the old keys"
    assert files_of(store_of, bucket, "renewed") == expected
    row.tries, row.lost = len(refused), "no tile, no pixel"


POISON = f"""<VRTDataset rasterXSize="64" rasterYSize="64">
  <SRS>EPSG:32612</SRS><GeoTransform>500000, 10, 0, 4100000, 0, -10</GeoTransform>
  {
    "".join(
        f'''<VRTRasterBand dataType="Byte" band="{band}" subClass="VRTDerivedRasterBand"><ColorInterp>{colour}</ColorInterp>
    <PixelFunctionType>kill</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage>
    <PixelFunctionCode><![CDATA[
import os
def kill(*given, **named):
    os.kill(os.getpid(), 9)
]]></PixelFunctionCode></VRTRasterBand>'''
        for band, colour in enumerate(("Red", "Green", "Blue"), 1)
    )
}
</VRTDataset>"""
"""A raster whose pixels are made by a Python function that kills the process that reads them."""


@pytest.mark.fault("D3")
def test_files_that_kill_their_reader(cluster, config, s3_server, store_of, row, tmp_path):
    write_scene(tmp_path / "good.tif")
    for number in range(row.tries):
        (tmp_path / f"poison{number}.vrt").write_text(POISON.replace("500000", f"{500000 + 5000 * number}"))
    bucket = s3_server.bucket(f"poison-{secrets.token_hex(4)}")
    sources = ["--rasters.sources", json.dumps([files(tmp_path / "*.*")]), "--rasters.max_bad_fraction", "0.2"]
    begun = time.monotonic()
    done = cluster.run("sample", *options(config, bucket, *sources), GDAL_VRT_ENABLE_PYTHON="YES")
    seconds = time.monotonic() - begun
    assert done.code == 0, done.err
    assert done.result["counts"]["unreadable"] == 16 * row.tries
    assert done.result["counts"]["kept"] == 1024
    version = Artefact(store_of(bucket), "sets", "made-up").current()
    reasons = [entry["reason"] for entry in pq.read_table(io.BytesIO(version.read("quarantine.parquet"))).to_pylist()]
    assert all("poison" in reason and "killed" in reason for reason in reasons)
    row.lost, row.recovered = "the poisonous tiles, each with its reason", f"{seconds:.0f} s for the whole command"


_KILLS_EACH = 4


@pytest.mark.fault("D4")
def test_readers_are_killed(begin, cluster, config, s3_server, store_of, in_bucket, row):
    """A few in each sampling: Ray gives a shard up whose reader has died six times."""
    bucket, sources, expected, _ = in_bucket
    killed = 0
    with faulty_s3.before(s3_server.endpoint) as faulty:
        faulty.rule = lambda method, path: 0.2 if method == "GET" and "remote.tif" in path else None  # so that there is time
        for number in itertools.count():
            named = options(config, bucket, *sources, "--name", f"killed-{number}")
            command = begin("sample", *named, AWS_ENDPOINT_URL=faulty.endpoint)
            of_this = kill_readers(cluster, command, min(_KILLS_EACH, row.tries - killed))
            assert command.ended().code == 0, command.err
            assert files_of(store_of, bucket, f"killed-{number}") == expected
            assert of_this, "no reader was met"
            killed += of_this
            if killed >= row.tries:
                break
    row.tries = killed
    row.lost = "no tile, none twice: files byte-equal"


def kill_readers(cluster, command, count):
    """SIGKILL so many random readers of a sampling, one each second, as long as it lasts; return how many."""
    killed = 0
    while killed < count and command.process.poll() is None:
        readers = [pid for pid in cluster.processes("ray::") if b"Map(" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        if readers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(random.choice(readers), signal.SIGKILL)
                killed += 1
        time.sleep(1.0)
    return killed


BIG = """
import json, os, sys, tempfile
from pathlib import Path
import numpy as np
import pyarrow as pa
import ray
from rayjobs.storage import Artefact, open_store
from rayjobs.tiles import chips
from rayjobs.train import cache

times, store_bytes, side, per_shard = int(sys.argv[1]), 80 * 2**20, 64, 256
count = times * store_bytes // (4 * side * side)
folder = Path(sys.argv[2])
draft = Artefact(open_store(f"file:{folder}/workspace"), "sets", "big").draft("v")
ids, shards = [], []

def chip(number):
    values = np.random.default_rng(number).integers(0, 255, (4, side, side), dtype=np.uint8)
    return chips.Chip(tile_id=f"{number:08}", pixels=values, valid=np.ones((side, side), bool))

for shard, start in enumerate(range(0, count, per_shard)):
    made = [chip(number) for number in range(start, min(start + per_shard, count))]
    draft.write(chips.shard_name(shard), chips.shard_bytes([chips.row(one) for one in made], "uint8", None))
    ids += [one.tile_id for one in made]
    shards += [shard] * len(made)
version = draft.publish({})
ray.init("local", num_cpus=2, object_store_memory=store_bytes, include_dashboard=False, log_to_driver=False)
tiles = pa.table({"tile_id": ids, "shard": shards})
dataset = cache.chip_dataset(version, tiles, side)
target = folder / "cache"
cache.fill(target, dataset.iter_batches(batch_size=256, batch_format="numpy"), count)
opened = cache.opened(target)
for number in np.random.default_rng(0).integers(0, count, 200).tolist():
    assert (opened.pixels[number] == chip(number).pixels).all()
peak = next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
mapped = opened.pixels.nbytes // 2**20
print(json.dumps({"count": count, "peak_mib": peak, "mapped_mib": mapped}))
"""


@pytest.mark.fault("D5")
def test_chips_that_are_many_times_the_object_store(row, tmp_path):
    """Training's chips pass through Ray Data to the node's cache with an object store of 80 MiB."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAYJOBS_LOG_DIR": str(tmp_path)}
    command = [sys.executable, "-c", BIG, str(row.tries), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    # pages of the cache's own file count as this process's, and may be given back at any time
    assert told["peak_mib"] - told["mapped_mib"] < 1500, told
    row.lost = f"no chip of {told['count']:,}; the process that fills the cache had {told['peak_mib'] - told['mapped_mib']} MiB beside it"


@pytest.mark.fault("D6")
def test_eight_threads_read_as_one(row, tmp_path):
    write_scene(tmp_path / "scene.tif", side=1024)
    [scene] = found(files(tmp_path / "scene.tif")).scenes
    rng = np.random.default_rng(6)
    windows = [Window(row=int(top), col=int(left), height=64, width=64) for top, left in rng.integers(0, 960, (row.tries, 2))]
    with RasterReader() as reader:
        expected = [reader.read(scene, window).values for window in windows]

    def read_all(start):
        with RasterReader() as reader:
            return [reader.read(scene, window).values for window in windows[start:] + windows[:start]]

    with ThreadPoolExecutor(8) as pool:
        for start, answers in zip(range(8), pool.map(read_all, range(8)), strict=True):
            for answer, other in zip(answers, expected[start:] + expected[:start], strict=True):
                np.testing.assert_array_equal(answer, other)
    row.tries *= 8
    row.lost = "nothing, bit-equal"
