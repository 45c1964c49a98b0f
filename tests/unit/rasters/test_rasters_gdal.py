"""How GDAL is set up: addresses, S3 variables, threads, warnings."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import rasterio
import rasterio.env
import rasterio.errors

from rayjobs.rasters import gdal
from tests.unit.rasters.rasters_made import noise, write

_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE")


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """Set AWS variables as if nothing else on the machine gave credentials."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    gdal._s3_options.cache_clear()
    yield lambda **variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]
    gdal._s3_options.cache_clear()


def options():
    with gdal.environment(s3=True):
        return rasterio.env.getenv()


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("s3://bucket/a/b.tif", "/vsis3/bucket/a/b.tif"),
        ("https://host/a.tif", "/vsicurl/https://host/a.tif"),
        ("http://host:8000/a.tif", "/vsicurl/http://host:8000/a.tif"),
        ("file:/data/a%20b.tif", "/data/a b.tif"),
        ("/data/a.tif", "/data/a.tif"),
    ],
)
def test_addresses_as_gdal_opens_them(uri, path):
    assert gdal.gdal_path(uri) == path
    assert gdal.is_remote(uri) == uri.startswith(("s3", "http"))


def test_the_usual_variables_reach_gdal(aws):
    aws(
        AWS_ACCESS_KEY_ID="k",
        AWS_SECRET_ACCESS_KEY="s",
        AWS_SESSION_TOKEN="t",
        AWS_ENDPOINT_URL="http://127.0.0.1:8333",
        AWS_DEFAULT_REGION="eu-x",
    )
    found = options()
    assert found["AWS_ACCESS_KEY_ID"] == "k"
    assert found["AWS_SECRET_ACCESS_KEY"] == "s"
    assert found["AWS_SESSION_TOKEN"] == "t"
    assert found["AWS_REGION"] == "eu-x"
    assert (found["AWS_S3_ENDPOINT"], found["AWS_HTTPS"], found["AWS_VIRTUAL_HOSTING"]) == ("127.0.0.1:8333", "NO", "FALSE")


def test_an_endpoint_over_https_keeps_its_path(aws):
    aws(AWS_ACCESS_KEY_ID="k", AWS_SECRET_ACCESS_KEY="s", AWS_ENDPOINT_URL="https://store.example/s3/")
    found = options()
    assert (found["AWS_S3_ENDPOINT"], found["AWS_HTTPS"]) == ("store.example/s3", "YES")


def test_without_credentials_requests_are_not_signed(aws):
    aws()
    found = options()
    assert found["AWS_NO_SIGN_REQUEST"] == "YES"
    assert "AWS_S3_ENDPOINT" not in found


def test_credentials_that_were_renewed_are_taken_up_in_time(aws, monkeypatch):
    aws(AWS_ACCESS_KEY_ID="old", AWS_SECRET_ACCESS_KEY="s")
    now = [1000.0]
    monkeypatch.setattr(gdal.time, "monotonic", lambda: now[0])
    assert options()["AWS_ACCESS_KEY_ID"] == "old"
    aws(AWS_ACCESS_KEY_ID="new")
    assert options()["AWS_ACCESS_KEY_ID"] == "old"
    now[0] += gdal.CREDENTIALS_SECONDS
    assert options()["AWS_ACCESS_KEY_ID"] == "new"


def test_local_work_asks_for_no_credentials(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", noise(1, 20, 20))
    monkeypatch.setattr(gdal, "_s3_options", lambda _period: pytest.fail("credentials were asked for"))
    with gdal.environment(), gdal.open_raster(path) as file:
        assert file.shape == (20, 20)


def test_every_thread_has_the_settings_that_it_entered():
    def inside(_):
        with gdal.environment():
            return rasterio.env.getenv()["GDAL_DISABLE_READDIR_ON_OPEN"]

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(inside, range(8))) == {"EMPTY_DIR"}
    assert not rasterio.env.hasenv()


def test_an_environment_outside_is_as_it_was_afterwards():
    with rasterio.Env(GDAL_HTTP_MAX_RETRY=1):
        with gdal.environment():
            assert rasterio.env.getenv()["GDAL_HTTP_MAX_RETRY"] == 5
        assert rasterio.env.getenv()["GDAL_HTTP_MAX_RETRY"] == 1


def test_side_files_are_found_on_a_file_system(tmp_path):
    path = write(tmp_path / "a", noise(3, 20, 20), driver="ENVI")
    with gdal.environment(), gdal.open_raster(path) as file:
        assert (file.count, file.driver) == (3, "ENVI")


def test_only_the_warning_of_plain_images_is_silenced(tmp_path):
    path = write(tmp_path / "a.tif", noise(1, 20, 20), crs=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with gdal.environment(), gdal.open_raster(path):
            warnings.warn("something else", UserWarning, stacklevel=1)
            warnings.warn("of rasterio", rasterio.errors.RasterioDeprecationWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["something else", "of rasterio"]
