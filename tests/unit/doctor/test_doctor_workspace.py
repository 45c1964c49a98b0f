"""The workspace: a folder, a real S3 server, and stores that do not do what a store must."""

from __future__ import annotations

import datetime
import shutil

import pytest

from rayjobs.doctor import imagery, workspace
from rayjobs.doctor.checks import looked
from rayjobs.storage import LocalStore, open_store
from tests.faulty_s3 import before


def by_name(uri, folder):
    return {check.name: check for check in looked({"workspace/address": lambda: workspace.workspace(uri, folder)})}


def test_a_folder_that_is_not_there_yet_is_tried_and_not_left_behind(tmp_path):
    uri = f"file:{tmp_path}/deep/er/workspace"
    checks = by_name(uri, tmp_path)
    assert {check.state for check in checks.values()} == {"ok"}
    assert set(checks) == {f"workspace/{name}" for name in ("address", "write", "conditional", "list", "space")}
    assert list(tmp_path.iterdir()) == []


def test_what_lies_in_a_workspace_stays(tmp_path):
    store = LocalStore(str(tmp_path))
    store.write("sets/one/CURRENT", b"1")
    by_name(str(tmp_path), tmp_path / "copies")
    assert [path.name for path in tmp_path.rglob("*")] == ["sets", "one", "CURRENT"]


def test_a_file_in_the_folders_place_is_one_fault(tmp_path):
    (tmp_path / "taken").write_text("")
    checks = by_name(f"{tmp_path}/taken", tmp_path)
    assert [(name, check.state) for name, check in checks.items()] == [("workspace/address", "fault")]
    assert checks["workspace/address"].remedy


class Careless(LocalStore):
    """Lets every writer through."""

    def swap(self, key, data, *, expected):  # noqa: ARG002
        self.write(key, data)
        return super().read_tagged(key).tag


class Forgetful(LocalStore):
    """Lists nothing, and gives back less than was written."""

    def list(self, prefix=""):
        return super().list(prefix)[:1]

    def read(self, key):
        return super().read(key)[:-1]


class Whole(LocalStore):
    """Answers a range with the beginning of the object, as a proxy does that knows no ranges."""

    def fetch(self, key, directory):
        whole = super().fetch(key, directory).read_bytes()
        directory.mkdir()
        path = directory / "copy"
        path.write_bytes(whole[: 2**20] * (len(whole) // 2**20))
        return path


def test_a_store_that_honours_no_condition_is_told(tmp_path):
    check = workspace.conditional(Careless(str(tmp_path)))
    assert (check.state, "If-None-Match" in check.finding) == ("fault", True)


def test_a_store_that_loses_data_is_told(tmp_path):
    store = Forgetful(str(tmp_path / "w"))
    assert [look(store).state for look in (workspace.written, workspace.listed)] == ["fault", "fault"]


def test_ranges_that_are_not_what_was_asked_for_are_told(tmp_path):
    assert workspace.ranges(LocalStore(str(tmp_path / "w")), tmp_path).state == "ok"
    check = workspace.ranges(Whole(str(tmp_path / "w")), tmp_path)
    assert (check.state, "Range" in check.remedy) == ("fault", True)


def test_a_bucket_is_tried_and_left_as_it_was(s3, tmp_path):
    uri = f"{s3.bucket('doctor-bucket')}/some/where"
    open_store(uri).write("sets/one/CURRENT", b"1")
    checks = by_name(uri, tmp_path)
    assert {check.state for check in checks.values()} == {"ok"}, checks
    assert set(checks) == {f"workspace/{name}" for name in ("address", "write", "conditional", "list", "ranges", "clock")}
    assert imagery.bucket(open_store(uri)).state == "ok"
    listed = s3.client().list_objects_v2(Bucket="doctor-bucket")["Contents"]
    assert [entry["Key"] for entry in listed] == ["some/where/sets/one/CURRENT"]
    assert not s3.client().list_multipart_uploads(Bucket="doctor-bucket").get("Uploads")


def test_a_bucket_that_is_not_there_is_one_fault(s3, tmp_path):
    checks = by_name("s3://doctor-absent/x", tmp_path)
    assert [(name, check.state) for name, check in checks.items()] == [("workspace/address", "fault")]
    assert "does not exist" in checks["workspace/address"].finding
    assert "create it" in checks["workspace/address"].remedy


def test_a_bucket_that_may_be_read_and_not_written_is_told(s3, tmp_path, monkeypatch):
    from rayjobs.storage import s3 as ours

    uri = s3.bucket("doctor-denied")
    with before(s3.endpoint) as faulty:
        faulty.rule = lambda method, _path: "403" if method == "PUT" else None
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        ours._client.cache_clear()
        checks = by_name(uri, tmp_path)
    ours._client.cache_clear()
    assert {name for name, check in checks.items() if check.state == "fault"} == {
        f"workspace/{name}" for name in ("write", "conditional", "list", "ranges")
    }
    assert {name: check.finding for name, check in checks.items() if check.state == "fault" and "AccessDenied" not in check.finding} == {}
    assert s3.environment["AWS_SECRET_ACCESS_KEY"] not in str(checks)


@pytest.mark.parametrize(("seconds", "state"), [(0, "ok"), (-20, "ok"), (100, "caution"), (-1000, "fault")])
def test_a_clock_that_is_off_is_told(seconds, state):
    now = 1_800_000_000.0
    theirs = datetime.datetime.fromtimestamp(now + seconds, datetime.UTC)
    assert workspace.clock_judged(now, now, theirs).state == state


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100 * 2**30, 99 * 2**30, 2**30))
    assert by_name(str(tmp_path), tmp_path)["workspace/space"].state == "fault"
