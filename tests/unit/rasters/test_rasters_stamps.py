"""Stamps tell what files hold and nothing of where they lie."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import shutil
import threading

import numpy as np
import pytest

from rayjobs.errors import StorageError
from rayjobs.rasters import stamps as module
from rayjobs.rasters.gdal import environment, gdal_path, open_raster, uri_of
from rayjobs.rasters.headers import read_header
from rayjobs.rasters.stamps import stamps
from tests.unit.rasters.rasters_made import files, found, noise, write

SIZES = [1, 1000, 2**16, 2**16 + 1, 2**18, 2**18 + 1, 3_000_001]


def stamp(path):
    return stamps({str(path): (str(path),)})[str(path)]


def content(size, seed=0):
    return np.random.default_rng(seed).bytes(size)


@pytest.mark.parametrize("size", SIZES)
def test_a_copy_has_the_stamp_of_its_original(tmp_path, size):
    (tmp_path / "a.tif").write_bytes(content(size))
    (tmp_path / "elsewhere").mkdir()
    shutil.copyfile(tmp_path / "a.tif", tmp_path / "elsewhere" / "b.tif")
    os.utime(tmp_path / "elsewhere" / "b.tif", (0, 0))
    assert stamp(tmp_path / "a.tif") == stamp(tmp_path / "elsewhere" / "b.tif") == stamp(f"file:{tmp_path}/a.tif")


@pytest.mark.parametrize("size", SIZES)
def test_other_content_or_another_size_is_another_stamp(tmp_path, size):
    data = content(size)
    changed = {0, size // 4, size // 2, 3 * size // 4, size - 1}
    variants = [data, data + b"x", *(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in changed)]
    found = set()
    for variant in variants:
        (tmp_path / "a.tif").write_bytes(variant)
        found.add(stamp(tmp_path / "a.tif"))
    assert len(found) == len(variants)


def test_a_small_file_counts_whole_and_a_large_one_by_its_pieces(tmp_path):
    (tmp_path / "small").write_bytes(content(200_000))
    assert stamp(tmp_path / "small") == hashlib.sha256(b"200000\n" + content(200_000)).hexdigest()
    data = content(1_000_000)
    (tmp_path / "large").write_bytes(data)
    pieces = data[:65536], *(data[at : at + 16384] for at in (250_000, 500_000, 750_000)), data[-65536:]
    assert stamp(tmp_path / "large") == hashlib.sha256(b"1000000\n" + b"".join(pieces)).hexdigest()


def test_a_recompressed_and_an_uncompressed_acquisition_are_told_apart(tmp_path):
    """Both have the header and the empty corners of the first; of the uncompressed one only the pieces between tell."""
    ground = np.zeros((1, 1024, 1024), "uint16")
    for profile in ({}, {"compress": "deflate", "tiled": True, "blockxsize": 128, "blockysize": 128}):
        seen = set()
        for seed in range(2):
            ground[:, 200:800, 200:800] = noise(600, 600, seed=seed, dtype="uint16", high=9000)
            seen.add(stamp(write(tmp_path / "a.tif", ground, nodata=0, **profile)))
        assert len(seen) == 2


def test_the_files_of_a_raster(tmp_path):
    """A VRT is what its parts are, at any depth; statistics and overviews decide no pixel."""
    (tmp_path / "in").mkdir()
    part = write(tmp_path / "in" / "part.tif", noise(1, 64, 64))
    for name, source in (("inner", "part.tif"), ("outer", "inner.vrt")):
        (tmp_path / "in" / f"{name}.vrt").write_text(
            '<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:32631</SRS><GeoTransform>5e5,10,0,5e6,0,-10</GeoTransform>'
            f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename relativeToVRT="1">{source}</SourceFilename>'
            "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
        )
    outer = str(tmp_path / "in" / "outer.vrt")
    discovery = found(files(outer))
    assert discovery.files == {outer: (outer, str(tmp_path / "in" / "inner.vrt"), part)}
    before = stamps(discovery.files)
    write(tmp_path / "in" / "part.tif", noise(1, 64, 64, seed=1))
    assert stamps(discovery.files) != before
    picture = write(tmp_path / "a.img", noise(1, 64, 64), driver="ENVI")
    with environment(), open_raster(picture) as dataset:
        assert f"{picture}.aux.xml" in dataset.files
        assert read_header(picture, dataset).files == (picture, str(tmp_path / "a.hdr"))


def test_parts_count_in_any_order(tmp_path):
    names = ["own", "b", "c"]
    for name in names:
        (tmp_path / name).write_text(name)
    own, first, second = (str(tmp_path / name) for name in names)
    one, other, swapped = (stamps({"x": parts})["x"] for parts in ((own, first, second), (own, second, first), (first, own, second)))
    assert one == other != swapped


@pytest.mark.parametrize("uri", ["s3://bucket/a b/c.tif", "https://host/a.tif?x=1", "/data/a.tif"])
def test_names_of_gdal_lead_back_to_addresses(uri):
    assert uri_of(gdal_path(uri)) == uri


def test_a_file_within_another_is_known_by_its_name():
    names = ["/vsizip/a.zip/b.tif", "/vsizip/a.zip/c.tif"]
    assert len(set(stamps({name: (name,) for name in names}).values())) == 2


def test_no_files_have_no_stamps():
    assert stamps({}) == {}


def test_what_is_gone_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"cannot read .*gone\.tif.*put the file back"):
        stamp(tmp_path / "gone.tif")


@pytest.mark.parametrize("size", SIZES)
def test_a_bucket_gives_the_stamp_of_the_disk(s3, tmp_path, size):
    path = tmp_path / "a.tif"
    path.write_bytes(content(size))
    bucket = f"stamps-{size}"
    s3.bucket(bucket)
    uri = s3.upload(path, f"s3://{bucket}/in/a b.tif")
    assert stamp(uri) == stamp(path)


def test_what_is_gone_from_a_bucket_is_named(s3, monkeypatch):
    monkeypatch.setattr(module, "_WAITS_SECONDS", (0.0,))
    bucket = s3.bucket("stamps-gone")
    with pytest.raises(StorageError, match=r"cannot read s3://stamps-gone/a\.tif"):
        stamp(f"{bucket}/a.tif")


class _Web(http.server.BaseHTTPRequestHandler):
    """Serves one file; every third answer is cut short or a 503, and below `/whole/` ranges are not known."""

    protocol_version = "HTTP/1.1"
    content = b""
    asked = 0

    def do_GET(self):
        type(self).asked += 1
        fate = type(self).asked % 6
        if fate == 3:
            self.send_error(503)
            return
        body, status = self.content, 200
        wanted = re.search(r"(\d+)-(\d+)", self.headers.get("Range", ""))
        self.send_response(status := 206 if wanted and not self.path.startswith("/whole/") else 200)
        if status == 206:
            first, last = map(int, wanted.groups())
            body = self.content[first : last + 1]
            self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(self.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fate == 0 else body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(module, "_WAITS_SECONDS", (0.0, 0.0, 0.0))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Web)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("folder", ["", "/whole"])
@pytest.mark.parametrize("size", SIZES)
def test_the_web_gives_the_stamp_of_the_disk(web, tmp_path, size, folder):
    (tmp_path / "a.tif").write_bytes(content(size))
    _Web.content = content(size)
    assert stamp(f"{web}{folder}/a.tif") == stamp(tmp_path / "a.tif")
