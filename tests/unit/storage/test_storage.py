from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import time

import pytest

from rayjobs.errors import ConfigError, NotFoundError, PublishConflictError, StorageError
from rayjobs.storage import Artefact, Lease, expand, open_store


def test_an_object_is_read_back_as_written(store):
    store.write("a/b.bin", b"123")
    assert store.read("a/b.bin") == b"123"
    assert store.size("a/b.bin") == 3
    assert store.list() == ["a/b.bin"]
    store.delete("a/b.bin")
    assert store.size("a/b.bin") is None
    assert store.list() == []


def test_a_missing_object_is_named(store):
    with pytest.raises(NotFoundError, match="a/b"):
        store.read("a/b")
    assert store.read_tagged("a/b") is None


def test_a_store_travels_as_its_uri(store):
    store.write("k", b"x")
    assert pickle.loads(pickle.dumps(store)).read("k") == b"x"


def test_upload_and_fetch(store, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"abc" * 1000)
    store.upload("deep/file", source)
    assert store.fetch("deep/file", tmp_path / "cache").read_bytes() == source.read_bytes()


def test_list_takes_any_prefix(store):
    for key in ("x/a1", "x/a2", "x/b", "y"):
        store.write(key, b"")
    assert store.list("x/a") == ["x/a1", "x/a2"]
    assert store.list("x/") == ["x/a1", "x/a2", "x/b"]


def test_swap_refuses_a_changed_object(store):
    first = store.swap("p", b"1", expected=None)
    with pytest.raises(PublishConflictError):
        store.swap("p", b"2", expected=None)
    second = store.swap("p", b"2", expected=first)
    with pytest.raises(PublishConflictError):
        store.swap("p", b"3", expected=first)
    assert store.read_tagged("p") == (b"2", second)


def test_expand_names_files_folders_and_globs(store):
    for key in ("im/a_B1.tif", "im/a_B2.tif", "im/sub/c.txt"):
        store.write(key, b"")
    names = lambda uri: [address.rpartition("root/")[2] for address in expand(uri)]  # noqa: E731
    assert names(store.address("im/a_B*.tif")) == ["im/a_B1.tif", "im/a_B2.tif"]
    assert names(store.address("im")) == ["im/a_B1.tif", "im/a_B2.tif", "im/sub/c.txt"]
    assert names(store.address("im/a_B1.tif")) == ["im/a_B1.tif"]
    assert len(expand(store.uri)) == 3
    with pytest.raises(NotFoundError, match="nothing is at"):
        expand(store.address("none*"))


def test_local_keys_stay_inside(tmp_path):
    with pytest.raises(StorageError, match="leads out"):
        open_store(str(tmp_path)).read("../secret")


@pytest.mark.usefixtures("s3")
def test_a_missing_bucket_is_named():
    with pytest.raises(StorageError, match=r"'no-such-bucket' .* does not exist"):
        open_store("s3://no-such-bucket/x").check()


def test_refused_credentials_are_explained(s3, monkeypatch):
    from rayjobs.storage import s3 as ours

    bucket = s3.bucket(f"test-{os.urandom(6).hex()}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    ours._client.cache_clear()
    with pytest.raises(StorageError, match=r"refused .*AWS_SECRET_ACCESS_KEY"):
        open_store(bucket).check()


def test_an_altered_file_of_a_version_is_refused(store):
    draft = Artefact(store, "sets", "s").draft("v1")
    draft.write("tiles", b"good")
    version = draft.publish({})
    assert version.read("tiles") == b"good"
    store.write("sets/s/v1/tiles", b"evil")
    with pytest.raises(StorageError, match="differs from its manifest"):
        version.read("tiles")


def test_a_version_with_a_missing_file_is_not_published(store):
    artefact = Artefact(store, "sets", "s")
    draft = artefact.draft("v1")
    draft.write("tiles", b"good")
    store.delete("sets/s/v1/tiles")
    with pytest.raises(StorageError, match="not published"):
        draft.publish({})
    assert artefact.current() is None


def _publish(uri, environment, writer, rounds, barrier, wins):
    os.environ.update(environment)
    artefact = Artefact(open_store(uri), "sets", "raced")
    for number in range(rounds):
        draft = artefact.draft(f"v{number:03d}-{writer}")
        draft.write("a", f"{number} {writer}".encode())
        draft.write("b", f"{number} {writer}".encode())
        barrier.wait(60)
        try:
            draft.publish({"round": number})
            wins.put((number, writer))
        except PublishConflictError:
            pass
        barrier.wait(60)


def test_of_two_publishers_one_wins_and_readers_see_whole_versions(store, environment):
    context = multiprocessing.get_context("spawn")
    barrier, wins, rounds = context.Barrier(3), context.Queue(), 20
    writers = [context.Process(target=_publish, args=(store.uri, environment, name, rounds, barrier, wins)) for name in "AB"]
    for writer in writers:
        writer.start()
    artefact, last = Artefact(store, "sets", "raced"), None
    for number in range(rounds):
        barrier.wait(60)
        while barrier.n_waiting < 2 and not barrier.broken:  # the writers are publishing
            version = artefact.current()
            if version is not None:
                assert version.read("a") == version.read("b")
                assert version.version in {last, f"v{number:03d}-A", f"v{number:03d}-B"}
        winner, last = wins.get(timeout=60), artefact.current().version
        assert winner[0] == number
        assert last == f"v{number:03d}-{winner[1]}"
        barrier.wait(60)
    for writer in writers:
        writer.join(60)
    assert wins.empty()


def _hold(uri, environment, ready):
    os.environ.update(environment)
    with Lease(open_store(uri), "runs/r/lease", seconds=30):
        ready.set()
        time.sleep(60)


def test_a_lease_keeps_others_out_and_outlives_no_killed_holder(store, environment):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(store.uri, environment, ready))
    holder.start()
    assert ready.wait(30)
    with pytest.raises(PublishConflictError, match=f"held by process {holder.pid}"), Lease(store, "runs/r/lease"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with Lease(store, "runs/r/lease") as lease:
        lease.check()
    assert json.loads(store.read("runs/r/lease"))["expires"] == 0.0


def test_a_lease_notices_that_it_was_taken_over(store):
    with Lease(store, "lease", seconds=0.3) as lease:
        found = store.read_tagged("lease")
        store.swap("lease", b'{"expires": 9e12, "host": "other", "pid": 1, "started": 0}', expected=found.tag)
        deadline = time.monotonic() + 10
        while lease.lost is None and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(PublishConflictError):
            lease.check()


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_where_the_folder_should_be_is_refused_before_work_begins(tmp_path, below):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ConfigError, match=r"taken is a file; choose another workspace\.uri"):
        open_store(str(tmp_path / "taken" / below)).check()
    open_store(str(tmp_path / "not yet" / below)).check()
    assert not (tmp_path / "not yet").exists()
