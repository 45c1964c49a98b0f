"""Discovery of raster files: names, dates, bands, areas, and what is said when something does not fit."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from rayjobs.config import build
from rayjobs.errors import BandError, ConfigError, EmptySearchError, NotFoundError
from rayjobs.rasters.section import RastersSection
from rayjobs.rasters.sources import area
from tests.unit.rasters.rasters_made import files, found, noise, write

ONE = noise(1, 40, 50)


def ids(discovery):
    return [scene.scene_id for scene in discovery.scenes]


def test_a_folder_a_glob_and_names_find_the_same_files(tmp_path):
    paths = [write(tmp_path / f"{name}.tif", ONE) for name in "cab"]
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset/>")
    (tmp_path / "README.md").write_text("not a raster")
    for uris in ([tmp_path], [tmp_path / "*"], [tmp_path / "*.tif"], paths, [*paths, tmp_path]):
        discovery = found(files(*uris))
        assert ids(discovery) == ["a", "b", "c"]
        assert discovery.unreadable == []


def test_a_prefix_keeps_two_sources_apart(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.tif", ONE)
    with pytest.raises(ConfigError, match="would both be scene 'a'; give one source a `name`"):
        found(files(tmp_path / "one"), files(tmp_path / "two"))
    assert ids(found(files(tmp_path / "one"), files(tmp_path / "two", name="later"))) == ["a", "later-a"]


def test_same_names_in_one_source_need_a_pattern(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.tif", ONE)
    with pytest.raises(ConfigError, match="give `pattern` a group `scene`"):
        found(files(tmp_path))
    assert ids(found(files(tmp_path, pattern=r"(?P<scene>\w+)/a\.tif$"))) == ["one", "two"]


def test_ids_do_not_depend_on_where_the_files_lie(tmp_path):
    (tmp_path / "x" / "y").mkdir(parents=True)
    write(tmp_path / "a.tif", ONE)
    write(tmp_path / "x" / "y" / "a.tif", ONE)
    assert ids(found(files(tmp_path / "a.tif"))) == ids(found(files(tmp_path / "x" / "y" / "a.tif")))


def test_the_pattern_tells_scene_band_and_date(tmp_path):
    for scene, date in (("T1", "20200629"), ("T2", "2021-07-01")):
        for band in ("red", "nir"):
            write(tmp_path / f"{scene}_{date}_{band}.tif", ONE)
    scenes = found(files(tmp_path, pattern=r"(?P<scene>T\d)_(?P<date>[\d-]+)_(?P<band>\w+)\.tif", bands=["red", "nir"])).scenes
    assert [(scene.scene_id, list(scene.assets)) for scene in scenes] == [("T1", ["red", "nir"]), ("T2", ["red", "nir"])]
    assert [scene.datetime for scene in scenes] == [datetime(2020, 6, 29, tzinfo=UTC), datetime(2021, 7, 1, tzinfo=UTC)]


def test_a_date_group_that_is_no_date_is_explained(tmp_path):
    write(tmp_path / "T1_99999999.tif", ONE)
    with pytest.raises(ConfigError, match="scene T1_99999999: cannot read '99999999' as a date"):
        found(files(tmp_path, pattern=r"_(?P<date>\d+)"))


def test_the_date_comes_from_the_experiment_before_the_tags(tmp_path):
    path = write(tmp_path / "a.tif", ONE, tags={"TIFFTAG_DATETIME": "2019:05:06 07:08:09"})
    assert found(files(path)).scenes[0].datetime == datetime(2019, 5, 6, 7, 8, 9, tzinfo=UTC)
    assert found(files(path, datetime="2020-01-01")).scenes[0].datetime == datetime(2020, 1, 1, tzinfo=UTC)


def test_a_pattern_that_fits_nothing_shows_an_address(tmp_path):
    path = write(tmp_path / "a.tif", ONE)
    with pytest.raises(EmptySearchError) as error:
        found(files(tmp_path, pattern="(?P<band>B[0-9]+)"))
    assert path in str(error.value)


def test_two_files_of_one_band_are_refused(tmp_path):
    for name in ("x_b1.tif", "y_b1.tif"):
        write(tmp_path / name, ONE)
    with pytest.raises(ConfigError, match=r"both band 'b1'.*group `scene`"):
        found(files(tmp_path, pattern=r"(?P<band>b\d)"))


def test_a_missing_address_names_itself(tmp_path):
    with pytest.raises(NotFoundError, match="nowhere"):
        found(files(tmp_path / "nowhere.tif"))


def test_a_band_that_does_not_exist_lists_what_there_is(tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 40, 50), photometric="RGB")
    with pytest.raises(BandError, match="scene a has no band 'nir'; it has 'red', 'green', 'blue'"):
        found(files(path), bands=["red", "nir"])


def test_names_given_by_the_file_are_used_when_they_are_names(tmp_path):
    path = write(tmp_path / "a.tif", noise(2, 40, 50), names=["red", "a description (of 30 words)"])
    assert list(found(files(path)).scenes[0].assets) == ["red", "b2"]


def test_more_names_than_bands_are_refused(tmp_path):
    path = write(tmp_path / "a.tif", ONE)
    with pytest.raises(BandError, match="has 1 bands, but 2 names"):
        found(files(path, bands=["a", "b"]))


def test_bands_on_two_grids_are_refused_with_both(tmp_path):
    write(tmp_path / "x_B02.tif", noise(1, 40, 40), pixel=10)
    write(tmp_path / "x_B11.tif", noise(1, 20, 20), pixel=20)
    with pytest.raises(BandError, match=r"'B02' and 'B11'.*40 x 40.*20 x 20.*not built yet"):
        found(files(tmp_path, pattern=r"(?P<scene>x)_(?P<band>B\d+)"))
    assert ids(found(files(tmp_path, pattern=r"(?P<scene>x)_(?P<band>B\d+)"), bands=["B11"])) == ["x"]


def test_only_the_files_of_wanted_bands_are_opened(tmp_path):
    write(tmp_path / "x_B02.tif", ONE)
    (tmp_path / "x_B11.tif").write_bytes(b"not a TIFF")
    discovery = found(files(tmp_path, pattern=r"(?P<scene>x)_(?P<band>B\d+)"), bands=["B02"])
    assert (ids(discovery), discovery.unreadable) == (["x"], [])


def test_an_unreadable_file_among_good_ones_is_reported(tmp_path):
    write(tmp_path / "a.tif", ONE)
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(whole[:60])
    (tmp_path / "c.tif").write_bytes(b"")
    write(tmp_path / "d.tif", ONE, crs=None, pixel=1)
    discovery = found(files(tmp_path))
    assert ids(discovery) == ["a", "d"]
    assert [uri.rpartition("/")[2] for uri, _ in discovery.unreadable] == ["b.tif", "c.tif"]
    assert all("cannot be opened" in reason for _, reason in discovery.unreadable)


def test_if_no_file_can_be_read_the_first_reason_is_told(tmp_path):
    (tmp_path / "b.tif").write_bytes(b"no")
    with pytest.raises(EmptySearchError, match=r"1 failed, the first: .*b\.tif: cannot be opened"):
        found(files(tmp_path))


def test_scales_and_offsets_come_from_the_experiment_or_the_file(tmp_path):
    path = write(tmp_path / "a.tif", ONE)
    asset = found(files(path)).scenes[0].assets["b1"]
    assert (asset.scale, asset.offset, asset.nodata) == (1.0, 0.0, None)
    asset = found(files(path, scale=0.0001, offset=-0.1, nodata=0)).scenes[0].assets["b1"]
    assert (asset.scale, asset.offset, asset.nodata) == (0.0001, -0.1, 0.0)


def test_scenes_of_other_crs_and_resolution_live_in_one_set(tmp_path):
    write(tmp_path / "a.tif", noise(1, 40, 50))
    write(tmp_path / "b.tif", noise(1, 30, 20), crs="EPSG:4326", origin=(3.0, 45.0), pixel=0.001)
    write(tmp_path / "c.tif", noise(1, 30, 20), crs="EPSG:3031", pixel=100)
    scenes = found(files(tmp_path)).scenes
    assert [scene.grid.crs for scene in scenes] == ["EPSG:32631", "EPSG:4326", "EPSG:3031"]
    assert scenes[0].resolution_m == pytest.approx(10, rel=1e-3)
    assert scenes[1].resolution_m == pytest.approx((78.8 + 111.1) / 2, rel=1e-2)


def geojson(path, *coordinates):
    shape = {"type": "Polygon", "coordinates": [list(coordinates)]}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": shape}]}))
    return str(path)


def test_the_area_of_interest_keeps_what_touches_it(tmp_path):
    write(tmp_path / "here.tif", ONE, crs="EPSG:4326", origin=(3.0, 45.0), pixel=0.001)
    write(tmp_path / "there.tif", ONE, crs="EPSG:4326", origin=(30.0, 45.0), pixel=0.001)
    write(tmp_path / "nowhere.tif", ONE, crs=None)
    rasters = tmp_path / "*.tif"
    assert ids(found(files(rasters), aoi=[2.9, 44.9, 3.01, 45.1])) == ["here"]
    triangle = geojson(tmp_path / "a.geojson", (29, 44), (31, 44), (30, 46), (29, 44))
    assert ids(found(files(rasters), aoi=triangle)) == ["there"]
    with pytest.raises(EmptySearchError, match=r"of 3 scenes .* 0 touch the area"):
        found(files(rasters), aoi=[-10, 0, -9, 1])


def test_an_area_across_the_antimeridian(tmp_path):
    write(tmp_path / "east.tif", ONE, crs="EPSG:4326", origin=(179.9, -17.0), pixel=0.001)
    write(tmp_path / "west.tif", ONE, crs="EPSG:4326", origin=(-179.9, -17.0), pixel=0.001)
    write(tmp_path / "far.tif", ONE, crs="EPSG:4326", origin=(0.0, -17.0), pixel=0.001)
    assert ids(found(files(tmp_path), aoi=[179, -18, -179, -16])) == ["east", "west"]


@pytest.mark.parametrize(("aoi", "message"), [([1, 5, 2, 4], "south"), ([1, 2, 400, 4], "leaves the globe")])
def test_an_impossible_area_is_explained(aoi, message):
    with pytest.raises(ConfigError, match=message):
        area(build(RastersSection, {"sources": [files("a.tif")], "aoi": aoi}))


def test_an_area_file_that_is_no_geojson_is_explained(tmp_path):
    (tmp_path / "a.json").write_text('{"type": "Feature"}')
    with pytest.raises(ConfigError, match=r"a\.json is not GeoJSON"):
        area(build(RastersSection, {"sources": [files("a.tif")], "aoi": str(tmp_path / "a.json")}))


def test_dates_keep_what_they_hold_and_drop_the_undated(tmp_path):
    write(tmp_path / "old.tif", ONE, tags={"ACQUISITION_DATE": "2018-07-16"})
    write(tmp_path / "new.tif", ONE, tags={"ACQUISITION_DATE": "2020-07-16"})
    write(tmp_path / "undated.tif", ONE)
    assert ids(found(files(tmp_path), datetime="2020-07-16")) == ["new"]
    assert ids(found(files(tmp_path), datetime="../2019")) == ["old"]
    with pytest.raises(EmptySearchError, match=r"0 fit the dates .* \(1 have no date"):
        found(files(tmp_path), datetime="1999/2000")
    with pytest.raises(ConfigError, match="ends before it starts"):
        found(files(tmp_path), datetime="2020/1999")


def test_a_quality_file_in_another_crs_is_refused(tmp_path):
    write(tmp_path / "a.tif", ONE)
    mask = write(tmp_path / "qa.tif", ONE, crs="EPSG:32632")
    with pytest.raises(BandError, match=r"qa\.tif of scene a has another CRS"):
        found(files(tmp_path / "a.tif", quality={"uri": mask, "classes": [3]}))
