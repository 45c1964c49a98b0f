"""Files out of a bucket: one copy for all processes of a node."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from rayjobs.storage import open_store
from rayjobs.storage import s3 as ours


def test_many_at_once_download_an_object_once(s3, tmp_path, monkeypatch):
    store = open_store(s3.bucket("fetched"))
    store.write("deep/file", b"abc" * 1000)
    client, downloads = ours._client(), []
    download = client.download_file
    monkeypatch.setattr(client, "download_file", lambda *arguments: (downloads.append(arguments), download(*arguments)))
    with ThreadPoolExecutor(8) as threads:
        paths = set(threads.map(lambda _: store.fetch("deep/file", tmp_path / "cache"), range(16)))
    assert len(downloads) == len(paths) == 1
    assert paths.pop().read_bytes() == b"abc" * 1000


def test_a_copy_outlives_its_object(s3, tmp_path):
    store = open_store(s3.bucket("fetched-before"))
    store.write("file", b"abc")
    store.fetch("file", tmp_path)
    store.delete("file")
    assert store.fetch("file", tmp_path).read_bytes() == b"abc"
