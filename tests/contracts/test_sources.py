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
import pyproj
import pytest

from rayjobs import geo
from rayjobs.errors import ConfigError, EmptySearchError, NotFoundError, StorageError, UnreadableTileError
from rayjobs.rasters import gdal
from rayjobs.rasters.label_map import LabelMap
from rayjobs.rasters.reader import RasterReader
from rayjobs.rasters.scenes import read_scenes, scenes_table
from rayjobs.rasters.sources import SOURCES
from rayjobs.storage import s3 as storage_s3
from tests import map_server
from tests.map_server import SIDE
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
    assert {source("x")["kind"] for _, source, _ in CASES.values()} | set(SERVICES) | {"stac_api"} == set(SOURCES)


# services, which hand out what no file holds

DATES = ("2024-03-01", "2024-03-02")
LEVEL, AT, TILES = 5, (10, 12), (2, 3)
"""Row and column of the first tile, and how many there are."""


@pytest.fixture(scope="module")
def pictures():
    return {date: noise(TILES[0] * SIDE, TILES[1] * SIDE, 3, seed=number) for number, date in enumerate(DATES)}


@pytest.fixture(scope="module")
def maps(tmp_path_factory, pictures):
    """A real map server, with the same pictures in both grids."""
    layer = {"title": "Made up", "format": "image/png", "times": list(DATES)}
    with map_server.serve(tmp_path_factory.mktemp("maps"), {"noise": layer}) as server:
        for grid, (date, picture) in itertools.product(("geo", "mercator"), pictures.items()):
            server.publish("noise", grid, date, LEVEL, AT, picture)
        yield server


def around(grid, row, col, rows, cols):
    """West, south, east and north of tiles, a thousandth of them inward."""
    size = map_server.LEVELS[grid][LEVEL] * SIDE
    left, top = (-180, 90) if grid == "geo" else (-20037508.342789244, 20037508.342789244)
    edges = left + (col + 1e-3) * size, top - (row + rows - 1e-3) * size, left + (col + cols - 1e-3) * size, top - (row + 1e-3) * size
    if grid == "geo":
        return list(edges)
    return list(pyproj.Transformer.from_crs("EPSG:3857", "EPSG:4326", always_xy=True).transform_bounds(*edges))


def of_gibs(maps):
    level = map_server.LEVELS["geo"][LEVEL] * 111_320
    source = {"kind": "gibs", "layer": "noise", "dates": ["2024-03-01/2024-03-31"], "url": maps.rest, "resolution_m": level}
    return source, "geo"


def of_wmts(maps):
    level = map_server.LEVELS["mercator"][LEVEL]
    source = {"kind": "wmts", "layer": "noise", "dates": list(DATES), "url": maps.rest, "resolution_m": level, "matrix_set": "mercator"}
    return source, "mercator"


def of_xyz(maps):
    url = f"{maps.endpoint}/wmts/noise/default/{{date}}/mercator/{{z}}/{{y}}/{{x}}.png"
    return {"kind": "xyz", "url": url, "zoom": LEVEL, "tile_size": SIDE, "dates": ["2024-03-01/2024-03-02"]}, "mercator"


SERVICES = {"gibs": of_gibs, "wmts": of_wmts, "xyz": of_xyz}


@pytest.fixture(params=SERVICES)
def service(request, maps):
    """A source of a service, and the grid of its pictures."""
    return SERVICES[request.param](maps)


def test_a_services_scenes_are_sorted_unique_and_outlive_a_journey(service):
    source, grid = service
    scenes = found(source, aoi=around(grid, *AT, *TILES)).scenes
    assert [scene.datetime.date().isoformat() for scene in scenes] == list(DATES)
    assert found(source, aoi=around(grid, *AT, *TILES)).scenes == scenes
    assert read_scenes(scenes_table(scenes)) == scenes
    assert pickle.loads(pickle.dumps(scenes)) == scenes


def test_a_services_pixels_are_read_without_a_download(service, pictures):
    source, grid = service
    size = map_server.LEVELS[grid][LEVEL]
    windows = np.array([(0, 0, 20, 20), (60, 60, 20, 40), (0, 0, TILES[0] * SIDE, TILES[1] * SIDE)])
    for scene in found(source, aoi=around(grid, *AT, *TILES)).scenes:
        picture = np.moveaxis(pictures[scene.datetime.date().isoformat()], -1, 0)
        assert (scene.grid.height, scene.grid.width) == picture.shape[1:]
        assert scene.grid.transform[0] == pytest.approx(size, rel=1e-12)
        with RasterReader() as reader:
            for answer, (row, col, height, width) in zip(reader.read_many(scene, windows), windows.tolist(), strict=True):
                np.testing.assert_array_equal(answer.values, picture[:, row : row + height, col : col + width])
                assert answer.valid.all()


def test_a_services_scene_names_the_same_ground_whatever_the_area(service, pictures):
    source, grid = service
    one = found(source, aoi=around(grid, *AT, 2, 2)).scenes[0]
    other = found(source, aoi=around(grid, *AT, 1, 3)).scenes[0]
    third = found(source, aoi=around(grid, AT[0] + 1, AT[1], 1, 1)).scenes[0]
    assert one.scene_id == other.scene_id != third.scene_id
    with RasterReader() as reader:
        values = [reader.read(scene, geo.Window(row=0, col=0, height=10, width=10)).values for scene in (one, other, third)]
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_array_equal(values[2], np.moveaxis(pictures[DATES[0]][SIDE : SIDE + 10, :10], -1, 0))


def test_a_service_outside_of_its_area_has_nothing(service):
    source, _ = service
    with pytest.raises(EmptySearchError, match=r"rasters\.(aoi|datetime)"):
        found(source, aoi=[10, 10, 11, 11], datetime="1999")


def test_an_area_across_the_antimeridian_gives_a_scene_on_either_side(service):
    source, _ = service
    scenes = found(source, aoi=[179, 20, -179, 21], datetime=DATES[0]).scenes
    assert len(scenes) == 2
    assert sorted(round(scene.footprint.centroid.x / 180) for scene in scenes) == [-1, 1]


class _StacApi(http.server.BaseHTTPRequestHandler):
    """A STAC API of a few items that gives two a page, with their files by ranges; the pages' links ask by POST with a token."""

    folder = Path()
    items: list[dict] = []  # noqa: RUF012  set by the test
    asked: list[dict] = []  # noqa: RUF012  likewise

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append(body)
        start = int(body.get("token", 0))
        link = {"rel": "next", "href": f"http://{self.headers['Host']}/search", "method": "POST", "merge": True}
        more = [{**link, "body": {"token": str(start + 2)}}] if start + 2 < len(self.items) else []
        self._answer(200, json.dumps({"type": "FeatureCollection", "features": self.items[start : start + 2], "links": more}).encode())

    def do_GET(self):
        content = (self.folder / Path(self.path).name).read_bytes()
        first, last = map(int, re.search(r"(\d+)-(\d+)", self.headers["Range"]).groups())
        self._answer(206, content[first : last + 1], f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}")

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str((self.folder / Path(self.path).name).stat().st_size))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def _answer(self, status, body, part=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if part:
            self.send_header("Content-Range", part)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_stac_api_is_asked_for_the_area_page_by_page(tmp_path):
    made_items(tmp_path)
    items = [json.loads((tmp_path / f"{name}.json").read_text()) for name in "abc"]
    _StacApi.folder, _StacApi.items, _StacApi.asked = tmp_path, items, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _StacApi) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = {"kind": "stac_api", "url": f"http://127.0.0.1:{server.server_port}", "collections": ["landsat"], "page_size": 2}
        scenes = found(source, aoi=[2, 44, 4, 46], datetime="2020-01-01/2020-01-31").scenes
        with pytest.raises(ConfigError, match="more than 2 items"):
            found({**source, "max_items": 2})
        server.shutdown()
    assert [scene.scene_id for scene in scenes] == ["item-a", "item-b", "item-c"]
    first, second = _StacApi.asked[:2]
    assert (first["collections"], first["limit"], first["datetime"]) == (["landsat"], 2, "2020-01-01T00:00:00Z/2020-01-31T23:59:59.999999Z")
    assert first["intersects"]["type"] == "Polygon"
    assert second == first | {"token": "2"}


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
