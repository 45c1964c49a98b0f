"""Fetching from a real map server that fails: every pixel, every missing request, and nothing twice."""

from __future__ import annotations

import functools
import io
import itertools
import json
import random
import re
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import rasterio

from rayjobs.errors import ConfigError, DamagedError
from rayjobs.fetch import animate, job, pieces, publish
from rayjobs.fetch.plan import plan_fetch
from rayjobs.fetch.section import FetchSection
from rayjobs.rasters import capabilities
from rayjobs.rasters.reader import RasterReader
from rayjobs.storage import LocalStore
from tests.unit.fetch.conftest import BBOX, COL, COLS, DATES, LEVEL, NORTH, PIXEL, ROW, ROWS, WEST
from tests.unit.rasters.rasters_made import found

TILES = ROWS * COLS


def read(address):
    with rasterio.open(address) as file:
        return np.moveaxis(file.read(), 0, -1), file.read_masks(1) > 0


def by_date(result):
    return {scene_id.partition("@")[2][:10]: address for scene_id, address in result.files.items()}


def table(result):
    return pq.read_table(result.requests).to_pylist()


def test_every_pixel_is_the_services(service, fetch, experiment):
    result = fetch(experiment())
    assert (result.complete, result.scenes, result.asked, result.missing) == (True, 2, 2 * TILES, [])
    assert set(by_date(result)) == set(DATES[:2])
    for date, address in by_date(result).items():
        values, valid = read(address)
        np.testing.assert_array_equal(values, service.pictures[date])
        np.testing.assert_array_equal(valid, service.pictures[date].any(axis=2))
    assert sorted(result.missing_fraction.values()) == [0, pytest.approx(50 / (COLS * 64))]
    with rasterio.open(by_date(result)[DATES[0]]) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.transform[:6] == (PIXEL, 0, WEST, 0, -PIXEL, NORTH)
    assert {(row["outcome"], row["status"], row["tries"]) for row in table(result)} == {("ok", 200, 1)}


def test_with_a_third_failing_it_ends_complete_and_asks_for_nothing_twice(service, fetch, experiment):
    fate = random.Random(1)
    service.fail(lambda _: fate.choice(["500", "503", "429", "reset", "cut"]) if fate.random() < 0.3 else None)
    result = fetch(experiment(tries=12))
    assert result.complete
    for date, address in by_date(result).items():
        np.testing.assert_array_equal(read(address)[0], service.pictures[date])
    assert len(service.whole) == 2 * TILES
    assert set(service.whole.values()) == {1}
    told = [failure for row in table(result) for failure in row["failures"]]
    assert len(told) == sum(fault is not None for _, fault in service.asked) > 10
    assert {failure["status"] for failure in told} >= {500, 503, 429, None}
    assert all(failure["at"] and failure["reason"] for failure in told)


def test_what_stalls_is_tried_again(service, fetch, experiment):
    stalled = itertools.count()
    service.fail(lambda _: 600.0 if next(stalled) in {2, 9} else None)
    result = fetch(experiment(timeout_s=2))
    assert result.complete
    slow = {path for path, fault in service.asked if fault}
    told = {row["url"]: [failure["reason"] for failure in row["failures"]] for row in table(result)}
    assert len(slow) == 2
    assert all(any("ReadTimeout" in reason for reason in told[service.proxy.endpoint + path]) for path in slow)


def test_every_missing_request_is_named_and_a_second_command_asks_for_those_alone(service, fetch, experiment):
    gone = {f"/{row}/{col}.png" for row, col in [(10, 12), (12, 15)]}
    service.fail(lambda path: "503" if DATES[0] in path and any(path.endswith(name) for name in gone) else None)
    result = fetch(experiment(tries=3))
    assert not result.complete
    assert {row["url"][-10:] for row in result.missing} == {f"{LEVEL:02}{name}"[-10:] for name in gone}
    assert all(row["status"] == 503 and row["tries"] == 3 and row["at"] and "HTTP 503" in row["reason"] for row in result.missing)
    assert set(by_date(result)) == {DATES[1]}, "the other date is complete"
    assert (result.version, result.items) == (None, None)
    assert sorted(row["outcome"] for row in table(result)) == ["failed"] * 2 + ["ok"] * (2 * TILES - 2)

    service.fail()
    again = fetch(experiment(tries=3))
    assert (again.complete, again.asked) == (True, 2)
    assert {path[-10:] for path, _ in service.asked} == {row["url"][-10:] for row in result.missing}
    assert len(service.asked) == 2
    np.testing.assert_array_equal(read(by_date(again)[DATES[0]])[0], service.pictures[DATES[0]])
    assert sorted(row["tries"] for row in table(again)) == [1] * (2 * TILES - 2) + [4, 4]

    service.fail()
    assert fetch(experiment(tries=3)).asked == len(service.asked) == 0
    assert Path(again.items).parent.name == again.version


def test_an_interrupted_command_goes_on(service, fetch, experiment, monkeypatch):
    each = job._each

    def interrupted(rows, work, workers):
        for number, report in enumerate(each(rows, work, workers)):
            yield report
            if number == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(job, "_each", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(experiment())
    monkeypatch.setattr(job, "_each", each)
    result = fetch(experiment())
    assert result.complete
    assert len(service.whole) == len(service.asked) == 2 * TILES


def pieces_of(tmp_path):
    return sorted(tmp_path.glob("workspace/**/pieces/*/*.parquet"))


def test_a_killed_command_keeps_of_a_piece_what_came_in(service, fetch, experiment, monkeypatch, tmp_path):
    """One tile is slow: the others of its piece are kept meanwhile, and not asked for again."""
    asked = pieces._asked

    def killed(scene, asker, empty, place):
        if place != (ROW, COL + 1):
            return asked(scene, asker, empty, place)
        for _ in range(1000):
            if any(pq.read_metadata(path).num_rows == 4 for path in pieces_of(tmp_path)):
                break
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(pieces, "KEPT_EVERY_S", 0.02)
    with monkeypatch.context() as patched:
        patched.setattr(pieces, "_asked", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(experiment(dates=DATES[:1]))
    assert [pq.read_metadata(path).num_rows for path in pieces_of(tmp_path)] == [4]
    result = fetch(experiment(dates=DATES[:1]))
    assert (result.complete, result.asked) == (True, TILES - 4)
    assert len(service.whole) == len(service.asked) == TILES
    np.testing.assert_array_equal(read(by_date(result)[DATES[0]])[0], service.pictures[DATES[0]])


def test_no_scene_is_put_together_of_half_a_piece(service, fetch, experiment, monkeypatch, tmp_path):
    """A worker of a killed command may live on for a while, and write what it had."""
    put_together = job.assemble

    def after_another_wrote(entry, **what):
        (path, *_) = pieces_of(tmp_path)
        pq.write_table(pq.read_table(path).slice(0, 3), path)
        return put_together(entry, **what)

    with monkeypatch.context() as patched:
        patched.setattr(job, "assemble", after_another_wrote)
        with pytest.raises(DamagedError, match=r"2 tiles of .* are not there any more; run the same command again"):
            fetch(experiment(dates=DATES[:1]))
    result = fetch(experiment(dates=DATES[:1]))
    assert (result.complete, result.asked) == (True, 2)


def test_what_is_done_is_read_once(service, fetch, experiment, monkeypatch):
    fetch(experiment())
    read, keys = LocalStore.read_tagged, []
    monkeypatch.setattr(LocalStore, "read_tagged", lambda store, key: keys.append(key) or read(store, key))
    assert fetch(experiment(dates=("2024-01-01/2024-01-31",))).complete
    asked = Counter(key for key in keys if "/done/" in key)
    assert sorted(asked.values()) == [1, 1, 2], "that of the date that was not there, before and after"


def test_pieces_that_a_killed_worker_left_are_deleted(service, fetch, experiment, monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "delete", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            fetch(experiment(dates=DATES[:1]))

    def pieces_left():
        return {path.parent for path in tmp_path.glob("workspace/**/pieces/*/*.parquet")}

    (left,) = pieces_left()
    service.fail(lambda path: "503" if path.endswith("10/12.png") else None)
    assert not fetch(experiment(dates=DATES[:2], tries=1)).complete
    (unfinished,) = pieces_left()
    assert unfinished != left, "those of the other date are needed"
    service.fail()
    result = fetch(experiment(dates=DATES[:2]))
    assert (result.complete, result.asked, pieces_left()) == (True, 1, set())


def test_further_dates_do_not_fetch_the_earlier_ones_again(service, fetch, experiment):
    fetch(experiment())
    service.fail()
    result = fetch(experiment(dates=("2024-01-01/2024-01-31",)))
    assert (result.scenes, result.asked, len(service.asked)) == (3, TILES, TILES)
    assert all(DATES[2] in path for path, _ in service.asked)


def test_a_scene_that_was_fetched_anew_with_other_pixels_is_published_anew(service, fetch, experiment):
    one = fetch(experiment())
    assert fetch(experiment()).version == one.version
    Path(by_date(one)[DATES[1]]).unlink()
    place = "MODIS_Terra_TrueColor", "geo", DATES[1], LEVEL, (ROW, COL)
    service.server.publish(*place, service.pictures[DATES[1]] // 2)
    other = fetch(experiment())
    service.server.publish(*place, service.pictures[DATES[1]])
    assert (other.complete, other.asked, other.version != one.version) == (True, TILES, True)
    assert set(one.files.values()) & set(other.files.values()) == {by_date(one)[DATES[0]]}
    scenes = found({"kind": "stac", "items": [other.items]}).scenes
    assert {asset.uri for scene in scenes for asset in scene.assets.values()} == set(other.files.values())


def test_a_service_that_is_down_is_left_alone(service, fetch, experiment):
    service.fail(lambda _: "503")
    result = fetch(experiment(tries=2, give_up_after=3, concurrency=1))
    assert len(service.asked) == 2 * 3
    assert len(result.missing) == 2 * TILES
    assert sum("not asked for" in row["reason"] for row in result.missing) == 2 * TILES - 3


def test_a_service_that_turns_us_away_is_left_alone(service, fetch, experiment):
    service.fail(lambda _: "403")
    result = fetch(experiment(give_up_after=3, concurrency=1))
    assert len(service.asked) == 3
    assert sum("not asked for" in row["reason"] for row in result.missing) == 2 * TILES - 3


def test_tiles_that_the_service_says_are_empty_have_no_data(service, fetch, experiment):
    service.fail(lambda path: "404" if path.endswith("10/12.png") else None)
    assert {row["status"] for row in fetch(experiment()).missing} == {404}
    service.fail(lambda path: "404" if path.endswith("10/12.png") else None)
    result = fetch(experiment(empty_statuses=[204, 404]))
    assert (result.complete, result.asked) == (True, 2)
    values, valid = read(by_date(result)[DATES[1]])
    assert not values[:64, :64].any()
    assert not valid[:64, :64].any()
    assert valid[64:, 64:].all()


def test_what_an_earlier_command_took_for_empty_is_asked_for_again(service, fetch, experiment):
    """During an outage 404 was believed; one tile failed for good, so that no scene of that date was put together."""
    service.fail(lambda path: "404" if path.endswith("10/12.png") else "503" if path.endswith("10/13.png") else None)
    outage = fetch(experiment(tries=1, empty_statuses=[204, 404]))
    assert Counter(row["outcome"] for row in table(outage)) == {"empty": 2, "failed": 2, "ok": 2 * TILES - 4}
    service.fail()
    result = fetch(experiment(tries=1))
    assert (result.complete, result.asked) == (True, 4)
    for date, address in by_date(result).items():
        np.testing.assert_array_equal(read(address)[0], service.pictures[date])
    told = {row["url"][-9:]: row for row in table(result) if row["failures"]}
    assert {name: (row["tries"], [failure["status"] for failure in row["failures"]]) for name, row in told.items()} == {
        "10/12.png": (2, [404]),
        "10/13.png": (2, [503]),
    }


@pytest.mark.parametrize(("channels", "nodata"), [(3, None), (3, 0), (3, 7), (1, None), (1, 7), (4, 7)])
def test_what_was_fetched_is_what_the_service_gives_unfetched(service, fetch, experiment, channels, nodata):
    """The same scenes, bands, pixels and validity on the same grid, so that a set may be sampled from either."""
    made = experiment(channels=channels, nodata=nodata)
    result = fetch(made)
    (source,) = made.to_dict()["rasters"]["sources"]
    stac = {"kind": "stac", "items": [result.items]}
    first = ["grey" if channels == 1 else "red"]
    from_files = [*found(stac).scenes, *found(stac, bands=first).scenes]
    from_service = [*found(source, aoi=BBOX).scenes, *found(source, aoi=BBOX, bands=first).scenes]
    for ours, theirs in zip(from_files, from_service, strict=True):
        assert (ours.scene_id, ours.grid, ours.datetime) == (theirs.scene_id, theirs.grid, theirs.datetime)
        assert list(ours.assets) == list(theirs.assets)
        with RasterReader() as reader:
            one, other = reader.read(ours, ours.grid.whole), reader.read(theirs, theirs.grid.whole)
        np.testing.assert_array_equal(one.values, other.values)
        np.testing.assert_array_equal(one.valid, other.valid)
        picture = service.pictures[ours.datetime.date().isoformat()][..., :channels]
        np.testing.assert_array_equal(one.valid, ~(picture == nodata).all(axis=2) if channels < 4 else True)


@pytest.mark.parametrize("form", ["webp", "gif"])
def test_a_range_of_dates_is_animated(service, fetch, experiment, form):
    result = fetch(experiment(dates=DATES, animation=form, animation_height=48, frames_per_second=4))
    ((name, address),) = result.animations.items()
    assert name.startswith("MODIS_Terra_TrueColor")
    with PIL.Image.open(address) as picture:
        assert (picture.n_frames, picture.size) == (len(DATES), (48 * COLS // ROWS, 48))
        picture.seek(1)
        picture.load()
        assert picture.info["duration"] == 250
        seen = np.asarray(picture.convert("L"), float)
    expected = service.pictures[DATES[1]].reshape(48, 4, 64, 4, 3).mean(axis=(1, 3, 4))
    assert np.corrcoef(seen.ravel(), expected.ravel())[0, 1] > 0.7
    assert fetch(experiment(dates=DATES, animation=form, animation_height=48, frames_per_second=4)).animations == result.animations


def test_frames_are_as_large_as_memory_allows():
    shape = functools.partial(animate.frame_shape, height=1080, longest=16_383)
    assert shape(2160, 4320, frames=100) == (1080, 2160)
    height, width = shape(2160, 4320, frames=3650)
    assert width == pytest.approx(2 * height, abs=1)
    assert 4 * 3650 * height * width == pytest.approx(animate.MOST_BYTES, rel=0.01)
    assert shape(10, 20, frames=3) == (10, 20)


@pytest.mark.parametrize("form", animate.FORMS)
def test_frames_are_as_long_as_the_form_can_have(tmp_path, form):
    longest = animate.LONGEST[form]
    path, grid = tmp_path / "strip.tif", rasterio.transform.from_origin(0, 4, 1, 1)
    with rasterio.open(path, "w", driver="GTiff", height=4, width=longest + 1, count=1, dtype="uint8", transform=grid) as file:
        file.write(np.arange(longest + 1, dtype=np.uint16).astype(np.uint8)[None].repeat(4, axis=0), 1)
    data = animate.animated([str(path)] * 2, form=form, height=1080, frames_per_second=15)
    with PIL.Image.open(io.BytesIO(data)) as picture:
        assert picture.size == (longest, 4)
    assert animate.frame_shape(10 * longest, 20, height=10 * longest, frames=1, longest=longest) == (longest, 2)


def test_levels_and_parts_of_a_layer_are_animated_apart(monkeypatch):
    monkeypatch.setattr(publish, "animated", lambda frames, **_: "|".join(frames).encode())
    days = ["2024-01-01", "2024-01-02T003000Z", "2024-01-03T003000.5Z"]
    parts = ("6.r0c0", "7.r0c0", "7.r0c9")
    series = {f"{name}@{day}.{part}": f"{name}.{part}" for name in ("A.b", "A@1", "A@2") for day in days for part in parts}
    series["A.b.7.r0c0"] = "A.b.7.r0c0"
    scenes = [SimpleNamespace(scene_id=name, series=of, datetime=None) for name, of in series.items()]
    found = dict(publish._animations(FetchSection(animation="gif"), scenes, {name: name for name in series}))
    assert sorted(found) == [f"animations/{name}.{part}.gif" for name in ("A.b", "A@1", "A@2") for part in parts]
    assert found["animations/A.b.6.r0c0.gif"].decode().split("|") == [f"A.b@{day}.6.r0c0" for day in days]
    assert found["animations/A.b.7.r0c0.gif"].decode().split("|") == ["A.b.7.r0c0", *(f"A.b@{day}.7.r0c0" for day in days)]


def test_one_picture_under_two_names_is_refused(service, experiment):
    told = experiment().to_dict()
    (source,) = told["rasters"]["sources"]
    for twice in ([source, source], [source, source | {"name": "again"}], [source | {"dates": []}, source | {"dates": [DATES[-1]]}]):
        made = job.made({"name": "x", "rasters": {**told["rasters"], "sources": twice}})
        with pytest.raises(ConfigError, match=r"would be fetched twice, as the scenes .* and .*; drop one"):
            plan_fetch(made.rasters, made.fetch)
    made = job.made({"name": "x", "rasters": {**told["rasters"], "sources": [source, source | {"channels": 4}]}})
    with pytest.raises(ConfigError, match=r"two sources would give the scene .*; give one a `name`"):
        plan_fetch(made.rasters, made.fetch)


def test_the_plan_asks_for_no_tile(service, in_this_process, experiment):
    told = job.preview(experiment())
    assert (told["scenes"], told["requests"], told["pixels"], told["requests_done"]) == (2, 2 * TILES, 2 * TILES * 64 * 64, 0)
    assert service.asked == []


def test_from_the_command_line(service, in_this_process, tmp_path, capfd):
    url = f"{service.proxy.endpoint}/wmts/1.0.0/WMTSCapabilities.xml"
    what = ["--layer", "MODIS_Terra_TrueColor", "--bbox", *map(str, BBOX), "--dates", "2024-01-01", "--url", url]
    how = ["--resolution", str(PIXEL * 111_320), "--workspace.uri", str(tmp_path / "w"), "--fetch.backoff_s", "0.01", "--fetch.tries", "2"]
    service.fail(lambda path: "500" if path.endswith("/11/12.png") else None)
    assert job.main([*what, *how, "--json"]) == 1
    answer = json.loads(capfd.readouterr().out.splitlines()[-1])
    (lost,) = answer["missing"]
    assert lost["url"].endswith("/11/12.png")
    assert Path(answer["requests"]).is_file()
    service.fail()
    assert job.main([*what, *how, "--json"]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["complete"]


def test_a_command_without_dates_fetches_what_the_service_shows(service, in_this_process, tmp_path, capfd):
    url = f"{service.proxy.endpoint}/wmts/1.0.0/WMTSCapabilities.xml"
    what = ["--layer", "MODIS_Terra_TrueColor", "--bbox", *map(str, BBOX), "--url", url, "--resolution", str(PIXEL * 111_320)]
    assert job.main([*what, "--workspace.uri", str(tmp_path / "w"), "--json"]) == 0
    ((scene_id, address),) = json.loads(capfd.readouterr().out.splitlines()[-1])["files"].items()
    assert "@" not in scene_id
    np.testing.assert_array_equal(read(address)[0][..., :3], service.pictures[DATES[-1]])


def test_layers_are_found_by_their_words(service, in_this_process, capfd):
    url = f"{service.proxy.endpoint}/wmts/1.0.0/WMTSCapabilities.xml"
    assert job.main(["--layers", "true COLOR", "terra", "--url", url, "--json"]) == 0
    (layer,) = json.loads(capfd.readouterr().out)["layers"]
    assert (layer["layer"], layer["formats"], layer["dates"]) == ("MODIS_Terra_TrueColor", ["image/png"], list(DATES))
    assert layer["finest_m"] == pytest.approx(4.5 / 2**7 * 111_319.49)
    assert job.main(["--layers", "color", "--url", url]) == 0
    assert "VIIRS_SNPP_TrueColor" in capfd.readouterr().out
    assert job.main(["--layers", "no", "such", "--url", url]) == 1


def test_a_layer_of_unknown_levels_is_listed(service, in_this_process, monkeypatch, capfd):
    url = f"{service.proxy.endpoint}/wmts/1.0.0/WMTSCapabilities.xml"
    body = re.sub(rb"(<ows:SupportedCRS>)[^<]*", rb"\1urn:ogc:def:crs:IAU::999999", capabilities.fetched(url))
    monkeypatch.setattr(capabilities, "fetched", lambda _: body)
    assert job.main(["--layers", "terra", "--url", url, "--json"]) == 0
    (layer,) = json.loads(capfd.readouterr().out, parse_constant=pytest.fail)["layers"]
    assert (layer["finest_m"], layer["resolutions_m"]) == (None, {})
    assert job.main(["--layers", "terra", "--url", url]) == 0
    assert "MODIS_Terra_TrueColor  levels unknown  image/png" in capfd.readouterr().out


def test_nothing_to_fetch_is_a_usage_error(in_this_process, capfd):
    assert job.main([]) == 2
    assert "--bbox" in capfd.readouterr().err
    for option in (["--resolution", "100"], ["--url", "https://x/"]):
        assert job.main(["--config", "x.yaml", *option]) == 2
        assert "give either --config" in capfd.readouterr().err
    with pytest.raises(ConfigError, match="names no service of tiles"):
        job.preview(job.made({"name": "x", "rasters": {"sources": [{"kind": "files", "uris": ["a.tif"]}]}}))


def test_the_requests_of_a_piece_are_told_without_their_bodies(tmp_path):
    store = LocalStore(str(tmp_path))
    assert pieces.read_requests(store, "a.parquet").equals(pieces.REQUESTS.empty_table())
    row = dict.fromkeys(pieces.REQUESTS.names) | {"scene_id": "a", "failures": [], "body": b"x"}
    store.write("a.parquet", pieces._parquet([row]))
    found = pieces.read_requests(store, "a.parquet")
    assert (found.schema.equals(pieces.REQUESTS), found["scene_id"].to_pylist()) == (True, ["a"])
