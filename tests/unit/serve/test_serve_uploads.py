"""Images from strangers: the right pixels, or an error that has an HTTP status; never another exception."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import warnings
import zlib

import numpy as np
import PIL.Image
import pytest
import rasterio
import rasterio.errors
import rasterio.io
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs.errors import QueryError, UploadError, UploadTooLargeError
from rayjobs.rasters.uploads import TileGround, UploadLimits, read_upload

LIMIT = 25_000_000
REFUSALS = (UploadError, UploadTooLargeError)


def read(data, *, bands=3, dtype="uint8", max_pixels=LIMIT, max_bytes=10**9):
    names = tuple(f"b{number}" for number in range(bands))
    return read_upload(data, UploadLimits(modalities=(names,), dtype=dtype, max_pixels=max_pixels, max_bytes=max_bytes))


def encoded(array, form, mode=None, **options):
    sink = io.BytesIO()
    PIL.Image.fromarray(array, mode).save(sink, form, **options) if mode else PIL.Image.fromarray(array).save(sink, form, **options)
    return sink.getvalue()


def geotiff(values, **profile):
    bands, height, width = values.shape
    settings = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": values.dtype, **profile}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.io.MemoryFile() as file:
            with file.open(**settings) as sink:
                sink.write(values)
            return file.read()


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 255, shape).astype(dtype)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bytes(width, height, *, depth=8, colour=0, rows=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_png_gives_its_pixels():
    array = noise(13, 17, 3)
    pixels = read(encoded(array, "PNG"))
    assert np.array_equal(pixels.values, array.transpose(2, 0, 1))
    assert pixels.valid.shape == (13, 17)
    assert pixels.valid.all()


def test_grey_png_has_one_band():
    array = noise(5, 7)
    assert np.array_equal(read(encoded(array, "PNG"), bands=1).values, array[None])


def test_one_bit_is_black_and_white():
    array = noise(6, 8) > 127
    sink = io.BytesIO()
    PIL.Image.fromarray(array).save(sink, "PNG")
    assert np.array_equal(read(sink.getvalue(), bands=1).values, array[None] * np.uint8(255))


def test_alpha_becomes_valid():
    array = noise(9, 9, 4)
    array[..., 3] = np.where(np.arange(81).reshape(9, 9) % 3, 255, 0)
    pixels = read(encoded(array, "PNG"))
    assert pixels.values.shape == (3, 9, 9)
    assert np.array_equal(pixels.valid, array[..., 3] > 0)


def test_jpeg_gives_what_pillow_decodes():
    data = encoded(noise(16, 24, 3), "JPEG")
    with PIL.Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(picture).transpose(2, 0, 1)
    assert np.array_equal(read(data).values, expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_geotiff_keeps_bands_dtype_and_nodata(dtype):
    values = noise(5, 12, 10, dtype=dtype)
    values[:, 3, 4] = 7
    values[values == 7] = 8
    values[:, 3, 4] = 7
    pixels = read(geotiff(values, nodata=7, compress="deflate"), bands=5, dtype=dtype)
    assert pixels.values.dtype == dtype
    assert np.array_equal(pixels.values, values)
    assert [tuple(place) for place in np.argwhere(~pixels.valid)] == [(3, 4)]


def test_a_header_that_claims_300_megapixels_is_refused_unread():
    data = png_bytes(20_000, 15_000)
    with pytest.raises(UploadTooLargeError, match="25,000,000 pixels that the service takes"):
        read(data)


def test_a_bomb_of_300_megapixels_is_refused_before_it_is_decoded():
    packer = zlib.compressobj(9)
    row = bytes(1 + 20_000 // 8)
    rows = b"".join(packer.compress(row * 100) for _ in range(150)) + packer.flush()
    data = png_bytes(20_000, 15_000, depth=1, rows=rows)
    assert len(data) < 200_000
    begun = time.process_time()
    with pytest.raises(UploadTooLargeError):
        read(data)
    assert time.process_time() - begun < 0.5


def test_a_tiff_over_the_limit_is_refused():
    data = geotiff(np.zeros((1, 600, 600), np.uint8), compress="deflate")
    with pytest.raises(UploadTooLargeError, match="600 x 600"):
        read(data, bands=1, max_pixels=359_999)
    assert read(data, bands=1, max_pixels=360_000).values.shape == (1, 600, 600)


def sparse(bands, side, dtype="uint8", **profile):
    """A TIFF of zeros that hold no place in the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.io.MemoryFile() as file:
            with file.open(driver="GTiff", count=bands, height=side, width=side, dtype=dtype, sparse_ok=True, **profile):
                pass
            return file.read()


def test_bands_are_counted_before_any_of_them_is_decoded():
    data = sparse(512, 1000, interleave="pixel", tiled=True, blockxsize=1008, blockysize=1008)
    assert len(data) < 10_000
    tracemalloc.start()
    with pytest.raises(QueryError, match=r"512 bands, the encoder takes 3 \(b0, b1, b2\)"):
        read(data)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


@pytest.mark.parametrize(("dtype", "size"), [("uint8", 1), ("int16", 2), ("float32", 4), ("float64", 8)])
def test_pixels_count_with_their_size(dtype, size):
    data = sparse(3, 100, dtype)
    with pytest.raises(UploadTooLargeError, match=f"{30_000 * size:,} bytes once decoded"):
        read(data, dtype=dtype, max_bytes=30_000 * size - 1)
    assert read(data, dtype=dtype, max_bytes=30_000 * size).values.nbytes == 30_000 * size


def test_alpha_is_no_band_but_takes_memory():
    data = geotiff(noise(4, 10, 10), photometric="rgb", alpha="yes")
    with pytest.raises(UploadTooLargeError, match="400 bytes"):
        read(data, max_bytes=399)
    assert read(data, max_bytes=400).values.shape == (3, 10, 10)
    picture = encoded(noise(10, 10, 4), "PNG")
    with pytest.raises(UploadTooLargeError, match="400 bytes"):
        read(picture, max_bytes=399)
    assert read(picture, max_bytes=400).values.shape == (3, 10, 10)


def test_blocks_larger_than_the_image_count_whole():
    data = sparse(1, 16, tiled=True, blockxsize=4096, blockysize=2048)
    with pytest.raises(UploadTooLargeError, match=f"{4096 * 2048:,} bytes"):
        read(data, bands=1, max_bytes=10**6)


def test_a_picture_of_other_bands_is_refused_undecoded():
    with pytest.raises(QueryError, match="3 bands, the encoder takes 4"):
        read(png_bytes(8, 8, colour=2), bands=4)  # it has no pixels, so that decoding it would be an error of its own


@pytest.mark.parametrize(
    ("sent", "tiles", "taken"),
    [
        ("uint16", "uint16", True), ("int16", "uint16", True), ("float64", "float32", True), ("uint8", "uint8", True),
        ("uint8", "uint16", False), ("uint16", "uint8", False), ("float32", "uint16", False), ("uint16", "float32", False),
    ],
)  # fmt: skip
def test_values_of_another_kind_than_the_tiles_are_refused(sent, tiles, taken):
    data = geotiff(noise(3, 8, 8, dtype=sent))
    if taken:
        assert read(data, dtype=tiles).values.dtype == sent
        return
    with pytest.raises(QueryError, match=f"type {sent}, the tiles {tiles}"):
        read(data, dtype=tiles)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_picture_is_refused_where_tiles_hold_more_than_8_bits(form):
    with pytest.raises(QueryError, match=r"type uint8, the tiles uint16: .* send a GeoTIFF"):
        read(encoded(noise(8, 8, 3), form), dtype="uint16")


def test_a_png_of_16_bits_is_refused_and_not_halved():
    rows = zlib.compress(b"".join(b"\0" + bytes(6 * 8) for _ in range(8)))
    with pytest.raises(UploadError, match="PNG files of 16 bits"):
        read(png_bytes(8, 8, depth=16, colour=2, rows=rows))


def test_an_image_on_which_nothing_can_be_seen_is_refused():
    with pytest.raises(QueryError, match="no pixel of the image can be seen"):
        read(encoded(np.zeros((8, 8, 4), np.uint8), "PNG"))
    with pytest.raises(QueryError, match="no pixel of the image can be seen"):
        read(geotiff(np.full((3, 8, 8), 7, np.uint16), nodata=7), dtype="uint16")


def test_values_that_are_not_finite_are_refused():
    values = noise(1, 8, 8, dtype=np.float32)
    values[0, 3, 3] = np.nan
    with pytest.raises(QueryError, match="not finite"):
        read(geotiff(values), bands=1, dtype="float32")


def test_nothing_is_no_image():
    with pytest.raises(UploadError, match="the upload is empty"):
        read(b"")


def test_complex_pixels_are_refused():
    with pytest.raises(UploadError, match="complex64"):
        read(sparse(1, 8, "complex64"), bands=1)


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.tif"
    path.write_bytes(geotiff(noise(1, 8, 8)))
    return path


def vrt(path):
    return (
        f'<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{path}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    ).encode()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_vrt_opens_nothing(secret):
    with rasterio.open(vrt(secret).decode()) as source:
        assert source.read().any(), "GDAL itself would have read the file"
    for data in (vrt(secret), b"II*\x00" + vrt(secret), str(secret).encode(), b"/vsicurl/http://127.0.0.1:9/x.tif"):
        with pytest.raises(UploadError):
            read(data)


def animated():
    frames = [PIL.Image.fromarray(noise(8, 8, 3)), PIL.Image.fromarray(255 - noise(8, 8, 3))]
    sink = io.BytesIO()
    frames[0].save(sink, "PNG", save_all=True, append_images=frames[1:])
    return sink.getvalue()


def wide_png():
    return encoded(noise(8, 8).astype(np.uint16) * 100, "PNG")


REFUSED = {
    "nothing": b"",
    "one byte": b"\x89",
    "text": b"hello",
    "GIF": encoded(noise(8, 8), "GIF"),
    "BMP": encoded(noise(8, 8), "BMP"),
    "WebP head": b"RIFF\x00\x00\x00\x00WEBPVP8 ",
    "CMYK JPEG": encoded(noise(8, 8, 4), "JPEG", "CMYK"),
    "16-bit PNG": wide_png(),
    "TIFF head": b"II*\x00",
    "TIFF head, BigTIFF": b"MM\x00+" + bytes(20),
    "empty PNG": png_bytes(8, 8, colour=2),
    "PNG without area": png_bytes(0, 8, colour=2),
    "PNG head": b"\x89PNG\r\n\x1a\n",
    "GIF with a TIFF behind": encoded(noise(8, 8), "GIF") + geotiff(noise(1, 8, 8)),
    "cut PNG": encoded(noise(64, 64, 3), "PNG")[:3000],
    "cut JPEG": encoded(noise(64, 64, 3), "JPEG")[:1500],
    "cut TIFF": geotiff(noise(3, 64, 64))[:3000],
}


@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_an_upload_error(name):
    with pytest.raises(REFUSALS) as caught:
        read(REFUSED[name])
    assert "\n" not in str(caught.value)


def test_an_animation_gives_its_first_picture_or_is_refused():
    try:
        pixels = read(animated())
    except REFUSALS:
        return
    assert np.array_equal(pixels.values, noise(8, 8, 3).transpose(2, 0, 1))


def test_what_stands_behind_a_png_is_not_read():
    array = noise(8, 8, 3)
    data = encoded(array, "PNG") + geotiff(noise(1, 8, 8)) + b"<VRTDataset/>"
    assert np.array_equal(read(data).values, array.transpose(2, 0, 1))


WHOLE = [encoded(noise(16, 16, 3), "PNG"), encoded(noise(16, 16, 3), "JPEG"), geotiff(noise(3, 16, 16), compress="deflate"), wide_png()]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(WHOLE), st.data())
def test_damaged_bytes_are_read_or_refused(whole, data):
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(len(damaged) // 2, len(damaged)))
    try:
        pixels = read(bytes(damaged[:end]), max_pixels=10_000, max_bytes=10**6)
    except QueryError:
        return
    assert pixels.values.shape[1:] == pixels.valid.shape
    assert pixels.valid.size <= 10_000
    assert pixels.values.nbytes <= 10**6


def on_the_ground(values, crs, transform, **profile):
    return geotiff(values, crs=crs, transform=transform, **profile)


def ramp(height, width):
    """One band whose values are columns, and one whose values are rows."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height))).astype(np.float32)


UTM = rasterio.CRS.from_epsg(32633)


@pytest.mark.parametrize("size_m", [5.0, 10.0, 20.0, 40.0])
def test_a_geotiff_is_read_at_the_encoder_s_resolution(size_m):
    """The ground of one tile in the middle: 32 pixels of 10 m, whatever the image's are."""
    corner = rasterio.Affine(size_m, 0, 500_000 - 100 * size_m, 0, -size_m, 100 * size_m)
    pixels = read_upload(
        on_the_ground(ramp(200, 200), UTM, corner),
        UploadLimits(modalities=(("x", "y"),), dtype="float32", max_pixels=10**6, max_bytes=10**7),
        like=TileGround(resolution_m=10.0, side=32),
    )
    assert pixels.values.shape == (2, 32, 32)
    assert pixels.valid.all()
    middles = 100 + ((np.arange(32) + 0.5) - 16) * 10 / size_m - 0.5  # columns of the image that lie below the tile's pixels
    np.testing.assert_allclose(pixels.values[0, 16], middles, atol=0.6)
    np.testing.assert_allclose(pixels.values[1, :, 16], middles, atol=0.6)


def test_pixels_that_are_not_square_on_the_ground_become_so():
    """At 60 degrees north a degree of longitude is half as long as one of latitude."""
    degrees = 10 / 111_195
    values = ramp(100, 200)
    pixels = read_upload(
        on_the_ground(values, rasterio.CRS.from_epsg(4326), rasterio.Affine(degrees, 0, 10, 0, -degrees, 60)),
        UploadLimits(modalities=(("x", "y"),), dtype="float32", max_pixels=10**6, max_bytes=10**7),
        like=TileGround(resolution_m=10.0, side=32),
    )
    assert np.ptp(pixels.values[0, 16]) == pytest.approx(62, abs=2)
    assert np.ptp(pixels.values[1, :, 16]) == pytest.approx(31, abs=2)


def test_what_a_small_geotiff_does_not_reach_is_not_valid():
    corner = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    pixels = read_upload(
        on_the_ground(noise(2, 20, 8, dtype=np.float32) + 1, UTM, corner),
        UploadLimits(modalities=(("x", "y"),), dtype="float32", max_pixels=10**6, max_bytes=10**7),
        like=TileGround(resolution_m=10.0, side=32),
    )
    assert pixels.values.shape == (2, 32, 32)
    rows, cols = np.nonzero(pixels.valid)
    assert (np.ptp(rows) + 1, np.ptp(cols) + 1, pixels.valid.sum()) == (20, 8, 160)
    assert (rows.min(), cols.min()) == (6, 12)


def test_coarse_pixels_far_larger_than_a_tile_take_no_more_memory():
    corner = rasterio.Affine(100_000, 0, 0, 0, -100_000, 0)
    data = on_the_ground(noise(1, 50, 50), UTM, corner)
    pixels = read_upload(
        data,
        UploadLimits(modalities=(("x",),), dtype="uint8", max_pixels=2500, max_bytes=2500),
        like=TileGround(resolution_m=10.0, side=32),
    )
    assert pixels.values.shape == (1, 32, 32)
    assert pixels.valid.all()


@pytest.mark.parametrize("like", [None, TileGround(resolution_m=10.0, side=32)])
def test_an_image_that_lies_nowhere_is_read_whole(like):
    values = noise(3, 12, 10)
    pixels = read_upload(
        geotiff(values), UploadLimits(modalities=(("r", "g", "b"),), dtype="uint8", max_pixels=10**6, max_bytes=10**7), like=like
    )
    assert np.array_equal(pixels.values, values)
    assert read_upload(
        encoded(noise(9, 7, 3), "PNG"), UploadLimits(modalities=(("r", "g", "b"),), dtype="uint8", max_pixels=99, max_bytes=999), like=like
    ).valid.shape == (9, 7)
