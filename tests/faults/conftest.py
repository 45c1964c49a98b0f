"""Which faults are tried how often, and the table of what came of them.

`make test-faults` tries each a few times. `RAYJOBS_CHAOS=full`, which `make chaos` sets, tries each as often as its pass line says, and
leaves out what has passed already, so that it may be interrupted.
"""

from __future__ import annotations

import datetime
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from rayjobs.storage import open_store
from tests.faults.running import Running
from tests.three_nodes import options

COUNTS = {
    "T1": (5, 100),
    "T2": (1, 10),
    "T3": (6, 50),
    "T4": (1, 5),
    "T5": (1, 1),
    "T6": (5, 300),
    "T8": (20, 200),
    "T9": (1, 10),
    "T10": (1, 5),
    "D1": (560, 1000),
    "D2": (100, 1000),
    "D2 keys": (1, 1),
    "D3": (1, 3),
    "D4": (3, 20),
    "D5": (3, 10),
    "D6": (200, 1000),
    "J1": (1, 5),
    "U1": (4, 50),
    "U2": (1, 3),
    "U3": (20, 60),
    "S1": (4, 100),
    "S2": (4, 1000),
    "S3": (6, 6),
    "S4": (2, 50),
    "S5": (1, 5),
    "S6": (5, 30),
    "S7": (400, 10_000),
    "S8": (1, 1),
    "L1": (24, 500),
    "L2": (4, 100),
    "L3": (4, 100),
}
"""Of each test the tries of its short form and of the full one: kills, tiles (D1, D2, D6), seconds (T6, U3, S6), times the store (D5),
swaps of the index (S1), requests (S7), trials (U1), pictures (L1)."""
FULL = os.environ.get("RAYJOBS_CHAOS") == "full"
FOLDER = Path(os.environ.get("RAYJOBS_CHAOS_FOLDER", "build/chaos")) / ("full" if FULL else "short")


@dataclass
class Row:
    """What came of one test."""

    test: str
    tries: int
    lost: str = "nothing"
    recovered: str = "-"
    """Seconds from the fault to work going on."""
    passed: bool = False
    date: str = ""

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.test}.json"


def pytest_configure(config):
    config.addinivalue_line("markers", "fault(name): the fault test of that name, as COUNTS has it")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "tests/faults" in item.path.as_posix():
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(4 * 3600 if FULL else 1500))
    done = [item for item in items if FULL and (name := _name(item)) and _has_passed(Row(name, 0).path)]
    config.hook.pytest_deselected(items=done)
    items[:] = [item for item in items if item not in done]


def _name(item):
    marker = item.get_closest_marker("fault")
    return marker.args[0] if marker else None


def _has_passed(path):
    return path.exists() and json.loads(path.read_text())["passed"]


@pytest.fixture
def row(request):
    """What the test tells of itself; `row.tries` is how often it is to try."""
    name = _name(request.node)
    made = Row(name, COUNTS[name][FULL], date=datetime.datetime.now(datetime.UTC).date().isoformat())
    request.node.row = made
    return made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    found = getattr(item, "row", None)
    if call.when == "call" and found:
        found.passed = report.passed
        found.path.parent.mkdir(parents=True, exist_ok=True)
        found.path.write_text(json.dumps(asdict(found)))
    return report


def pytest_terminal_summary(terminalreporter):
    rows = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    if rows:
        terminalreporter.section(f"faults, {FOLDER.name} form")
        terminalreporter.write_line("| test | tries | lost | recovered in | passed | on |")
        terminalreporter.write_line("|---|---|---|---|---|---|")
        for row in sorted(rows, key=_place):
            passed = "yes" if row["passed"] else "NO"
            terminalreporter.write_line(
                f"| {row['test']} | {row['tries']} | {row['lost']} | {row['recovered']} | {passed} | {row['date']} |"
            )


def _place(row):
    """Where a row stands: trainings, sweeps, data, jobs, services, labels, each by number."""
    return "TUDJSL".index(row["test"][0]), int("".join(filter(str.isdigit, row["test"]))), row["test"]


@pytest.fixture(scope="session")
def store_of(s3_server):
    os.environ.update(s3_server.environment)
    return open_store


@pytest.fixture(scope="session")
def sampled(cluster, config, s3_server, store_of):
    """A workspace with a set of tiles."""
    bucket = s3_server.bucket(f"faults-{secrets.token_hex(4)}")
    done = cluster.run("sample", *options(config, bucket))
    assert done.code == 0, done.err
    return bucket


@pytest.fixture
def begin(cluster):
    """Begin commands on the cluster; those that are left are ended."""
    running = []

    def begun(verb, *arguments, **environment):
        running.append(Running(cluster.start(verb, *arguments, **environment)))
        return running[-1]

    yield begun
    for command in running:
        command.kill()
