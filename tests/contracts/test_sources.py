"""What every kind of source promises, on a file system and on a real S3 server; and what is said when a bucket fails."""

from __future__ import annotations

import http.server
import itertools
import json
import pickle
import random
import re
import shutil
import threading
from pathlib import Path

import boto3
import numpy as np
import PIL.Image
import pytest

from rayjobs.errors import EmptySearchError, NotFoundError, StorageError, UnreadableTileError
from rayjobs.rasters import gdal
from rayjobs.rasters.label_map import LabelMap
from rayjobs.rasters.reader import RasterReader
from rayjobs.rasters.scenes import read_scenes, scenes_table
from rayjobs.rasters.sources import SOURCES
from rayjobs.storage import s3 as storage_s3
from tests.unit.rasters.rasters_made import files, found, noise, write

_BUCKETS = (f"sources-{number}" for number in itertools.count())


@pytest.fixture
def fresh_credentials(s3):
    """S3, with GDAL forgetting what it knew of credentials before and after."""
    gdal._s3_options.cache_clear()
    yield s3
    gdal._s3_options.cache_clear()


@pytest.fixture(params=["file system", "s3"])
def publish(request):
    """Put a local folder where the test reads it from; return its address."""
    if request.param == "file system":
        return str
    server = request.getfixturevalue("fresh_credentials")

    def upload(folder):
        bucket = server.bucket(next(_BUCKETS))
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                server.upload(path, f"{bucket}/in/{path.relative_to(folder)}")
        return f"{bucket}/in"

    return upload


def made_files(folder):
    for name in "cab":
        write(
            folder / f"{name}.tif", noise(2, 70, 90, seed=ord(name)), tiled=True, blockxsize=32, blockysize=32, compress="deflate", nodata=7
        )


def made_band_files(folder):
    for name, band in itertools.product("xy", ("red", "nir")):
        write(folder / f"{name}_{band}.tif", noise(1, 70, 90, dtype="uint16", high=9000))


def made_items(folder):
    made_files(folder)
    for name in "cab":
        asset = {"href": f"./{name}.tif", "type": "image/tiff", "eo:bands": [{"name": "red"}, {"name": "nir"}]}
        item = {"type": "Feature", "id": f"item-{name}", "properties": {"datetime": "2020-01-01T00:00:00Z"}, "assets": {"image": asset}}
        (folder / f"{name}.json").write_text(json.dumps(item))


def made_pictures(folder):
    for name, ending in (("pond", "png"), ("field", "jpg"), ("pond", "tif")):
        (folder / name).mkdir(exist_ok=True)
        PIL.Image.fromarray(noise(70, 90, 3)).save(folder / name / f"one.{ending}")


def made_pairs(folder):
    for name in ("10N20W", "11S340E", "12N0E"):
        PIL.Image.fromarray(noise(70, 90, 3)).save(folder / f"{name}_image.jpg")
        PIL.Image.fromarray(noise(90, 70, seed=1)).save(folder / f"{name}_label.png")


PAIRS = {
    "pattern": r"(?P<place>(?P<lat>\d+[NS])(?P<lon>\d+[EW]))_image",
    "body": "mars",
    "companion": {"replace": "_image.jpg", "by": "_label.png", "turn": 90},
}
CASES = {
    "files": (made_files, files, 3),
    "files of one band": (made_band_files, lambda root: files(root, pattern=r"(?P<scene>[xy])_(?P<band>\w+)\.tif"), 2),
    "stac": (made_items, lambda root: {"kind": "stac", "items": [root]}, 3),
    "images": (made_pictures, lambda root: {"kind": "images", "root": root}, 3),
    "images beside label images": (made_pairs, lambda root: {"kind": "images", "root": root, "labels": "none", **PAIRS}, 3),
}


@pytest.fixture(params=CASES)
def case(request, tmp_path, publish):
    """A source, how many scenes it has, and the local folder that it was made from."""
    make, source, count = CASES[request.param]
    folder = tmp_path / "made"
    folder.mkdir()
    make(folder)
    return source(publish(folder)), count, folder


def test_scenes_are_sorted_unique_and_the_same_again(case):
    source, count, _ = case
    discovery = found(source)
    ids = [scene.scene_id for scene in discovery.scenes]
    assert len(ids) == count
    assert ids == sorted(set(ids))
    assert discovery.unreadable == []
    assert found(source).scenes == discovery.scenes


def test_scenes_outlive_their_table_and_a_journey(case):
    source, *_ = case
    scenes = found(source).scenes
    assert read_scenes(scenes_table(scenes)) == scenes
    assert pickle.loads(pickle.dumps(scenes)) == scenes


def test_every_scene_can_be_read_and_many_equal_each(case):
    source, *_ = case
    windows = np.array([(0, 0, 20, 20), (50, 70, 20, 20), (25, 30, 40, 40), (0, 0, 70, 90)])
    for scene in found(source).scenes:
        with RasterReader() as reader:
            many = reader.read_many(scene, windows)
            for answer, (row, col, height, width) in zip(many, windows.tolist(), strict=True):
                one = reader.read_many(scene, np.array([(row, col, height, width)]))[0]
                assert one.values.shape == (len(scene.assets), height, width)
                assert one.values.dtype == scene.dtype
                np.testing.assert_array_equal(answer.values, one.values)
                np.testing.assert_array_equal(answer.valid, one.valid)
                np.testing.assert_array_equal(one.values, many[3].values[:, row : row + height, col : col + width])


def test_ids_do_not_change_when_the_files_move(case, tmp_path):
    source, _, folder = case
    moved = shutil.copytree(folder, tmp_path / "moved")
    key = {"files": "uris", "stac": "items", "images": "root"}[source["kind"]]
    local = {**source, key: str(moved) if key == "root" else [str(moved)]}
    assert [scene.scene_id for scene in found(local).scenes] == [scene.scene_id for scene in found(source).scenes]


def test_a_cut_file_among_good_ones_is_left_out_by_name(case, publish):
    source, count, folder = case
    key = {"files": "uris", "stac": "items", "images": "root"}[source["kind"]]
    victim = min(path for path in folder.rglob("*") if path.suffix in {".tif", ".jpg"})
    victim.write_bytes(victim.read_bytes()[:30])
    address = publish(folder)
    discovery = found({**source, key: address if key == "root" else [address]})
    assert len(discovery.scenes) == count - 1
    assert [uri.rpartition("/")[2] for uri, _ in discovery.unreadable] == [victim.name]


def test_nothing_there_is_an_error_that_names_it(case):
    source, *_ = case
    key = {"files": "uris", "stac": "items", "images": "root"}[source["kind"]]
    address = source[key] if key == "root" else source[key][0]
    gone = f"{address}/gone"
    with pytest.raises((NotFoundError, EmptySearchError), match="gone"):
        found({**source, key: gone if key == "root" else [gone]})


def test_every_kind_of_source_is_tried_here():
    assert {source("x")["kind"] for _, source, _ in CASES.values()} == set(SOURCES)


# what only a bucket can do


def test_bytes_read_from_a_bucket_equal_those_on_disk(fresh_credentials, tmp_path):
    made_files(tmp_path)
    bucket = fresh_credentials.bucket(next(_BUCKETS))
    local = found(files(tmp_path)).scenes
    for name in "abc":
        fresh_credentials.upload(tmp_path / f"{name}.tif", f"{bucket}/{name}.tif")
    for ours, theirs in zip(found(files(f"{bucket}/*.tif")).scenes, local, strict=True):
        with RasterReader() as reader:
            np.testing.assert_array_equal(reader.read(ours, ours.grid.whole).values, reader.read(theirs, theirs.grid.whole).values)


def test_a_label_map_in_a_bucket(fresh_credentials, tmp_path):
    bucket = fresh_credentials.bucket(next(_BUCKETS))
    uri = fresh_credentials.upload(tmp_path / write(tmp_path / "l.tif", np.full((1, 70, 90), 11, "uint8")), f"{bucket}/l.tif")
    scene = found(files(write(tmp_path / "a.tif", noise(1, 70, 90)))).scenes[0]
    label_map = LabelMap(uri=uri, classes={11: "water"})
    label_map.check_overlap([scene])
    assert label_map.fractions_many(scene.grid, np.array([(0, 0, 10, 10)]))[0].coverage == 1


@pytest.mark.usefixtures("fresh_credentials")
def test_a_missing_bucket_is_named():
    with pytest.raises(StorageError, match=r"the bucket 'no-such-bucket' .* does not exist"):
        found(files("s3://no-such-bucket/a.tif"))
    with pytest.raises(StorageError, match=r"the bucket 'no-such-bucket' .* does not exist"):
        found({"kind": "images", "root": "s3://no-such-bucket/pictures"})


def test_wrong_credentials_are_named(fresh_credentials, monkeypatch):
    bucket = fresh_credentials.bucket(next(_BUCKETS))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    storage_s3._client.cache_clear()
    try:
        for address in (f"{bucket}/a.tif", f"{bucket}/*.tif", f"{bucket}/folder"):
            with pytest.raises(StorageError, match=r"refused .* check AWS_ACCESS_KEY_ID"):
                found(files(address))
    finally:
        storage_s3._client.cache_clear()


def test_a_cut_object_fails_tile_by_tile(fresh_credentials, tmp_path):
    path = tmp_path / "a.tif"
    write(path, noise(1, 256, 256), tiled=True, blockxsize=64, blockysize=64)
    path.write_bytes(path.read_bytes()[:40_000])
    uri = fresh_credentials.upload(path, f"{fresh_credentials.bucket(next(_BUCKETS))}/a.tif")
    scene = found(files(uri)).scenes[0]
    with RasterReader() as reader:
        answers = reader.read_many(scene, np.array([(row, 0, 64, 64) for row in range(0, 256, 64)]))
    assert [isinstance(answer, UnreadableTileError) for answer in answers] == [False, False, False, True]
    assert uri in str(answers[3])


def test_a_reader_that_outlives_its_credentials_takes_up_new_ones(fresh_credentials, tmp_path, monkeypatch):
    values = noise(1, 512, 512)
    write(tmp_path / "a.tif", values, tiled=True, blockxsize=256, blockysize=256)
    uri = fresh_credentials.upload(tmp_path / "a.tif", f"{fresh_credentials.bucket(next(_BUCKETS))}/a.tif")
    scene = found(files(uri)).scenes[0]
    good = boto3.Session().get_credentials().get_frozen_credentials()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "expired")
    gdal._s3_options.cache_clear()
    with RasterReader() as reader:
        with pytest.raises(UnreadableTileError):
            reader.read(scene, scene.grid.whole)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", good.secret_key)  # as a role's credentials that boto3 has renewed
        np.testing.assert_array_equal(reader.read(scene, scene.grid.whole).values, values)


class _Flaky(http.server.BaseHTTPRequestHandler):
    """Serves one file by ranges; of ten answers about one is cut short and three are a 503."""

    protocol_version = "HTTP/1.1"
    content = b""
    fate = random.Random(0)
    cut = refused = 0

    def do_GET(self):
        first, last = re.search(r"(\d+)-(\d+)?", self.headers.get("Range", "bytes=0-")).groups()
        stop = min(int(last) + 1 if last else len(self.content), len(self.content))
        body = self.content[int(first) : stop]
        fate = self.fate.random()
        if fate < 0.3:
            type(self).refused += 1
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{len(self.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fate > 0.9:
            type(self).cut += 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def flaky(tmp_path):
    """A server that fails four times of ten and has the same raster at every path; and its values."""
    values = noise(1, 256, 256)
    _Flaky.content = Path(write(tmp_path / "a.tif", values, tiled=True, blockxsize=16, blockysize=16)).read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Flaky)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", values
    server.shutdown()
    server.server_close()
    thread.join()


def test_answers_cut_short_and_refused_are_asked_for_again(flaky, monkeypatch):
    uri, values = flaky
    monkeypatch.setitem(gdal.OPTIONS, "GDAL_HTTP_RETRY_DELAY", 0.01)
    for number in range(12):  # GDAL keeps what it has fetched of an address
        scene = found(files(f"{uri}/{number}.tif")).scenes[0]
        with RasterReader() as reader:
            pixels = reader.read(scene, scene.grid.whole)
        np.testing.assert_array_equal(pixels.values, values)
    assert _Flaky.cut > 0
    assert _Flaky.refused > 0
