from __future__ import annotations

import os

import pytest

from rayjobs.storage import open_store


@pytest.fixture(params=["file", "s3"])
def store(request, tmp_path):
    if request.param == "file":
        return open_store(f"file:{tmp_path}/root")
    server = request.getfixturevalue("s3")
    return open_store(server.bucket(f"labels-{os.urandom(6).hex()}") + "/root")


@pytest.fixture
def local(tmp_path):
    return open_store(f"file:{tmp_path}/root")
