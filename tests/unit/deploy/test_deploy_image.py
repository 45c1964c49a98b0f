"""The container file: what it copies exists and is let in, what it installs is pinned, and it ends as nobody special. It is not built."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "deploy/Containerfile").read_text()
LINES = [line for line in re.sub(r"\\\n", " ", TEXT).splitlines() if line and not line.startswith("#")]
STEPS = [(line.partition(" ")[0], shlex.split(line.partition(" ")[2])) for line in LINES]
STAGES = {words[2] for step, words in STEPS if step == "FROM" and len(words) == 3}
COPIED = [source for step, words in STEPS if step == "COPY" and not words[0].startswith("--from") for source in words[:-1]]


def let_in(path):
    """Whether .dockerignore lets a file into the build; the last line that fits decides."""
    result = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            parents = [path, *map(str, Path(path).parents)][:-1]
            pattern = line.removeprefix("!").removeprefix("**/")
            if any(fnmatch.fnmatch(Path(one).name if "**/" in line else one, pattern) for one in parents):
                result = line.startswith("!")
    return result


def test_only_known_steps_are_taken():
    assert {step for step, _ in STEPS} <= {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "CMD"}
    assert [step for step, _ in STEPS[:2]] == ["ARG", "FROM"]


@pytest.mark.parametrize("source", COPIED)
def test_what_is_copied_is_in_the_checkout(source):
    tracked = subprocess.run(["git", "ls-files", source], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert tracked
    assert all(map(let_in, tracked))


@pytest.mark.parametrize("path", [".git/config", ".venv/bin/python", "workspace/x", "demo/x", ".env", "tests/conftest.py", "mlflow.db"])
def test_nothing_else_gets_in(path):
    assert not let_in(path)


def test_stages_that_are_copied_from_are_made():
    named = {words[0].partition("=")[2] for step, words in STEPS if step == "COPY" and words[0].startswith("--from")}
    assert named == STAGES == {"wheel"}


def test_versions_are_pinned():
    [base] = [words[0].partition("=")[2] for step, words in STEPS if step == "ARG"]
    assert re.fullmatch(r"\S+/python:3\.11(\.\d+)?-slim-\w+", base)
    installs = [words for step, words in STEPS if step == "RUN" and words[:4] == ["python", "-m", "pip", "install"]]
    assert len(installs) == 1
    assert installs[0][installs[0].index("--constraint") + 1] == "/opt/rayjobs/constraints.txt"
    assert "--no-deps" in next(words for step, words in STEPS if step == "RUN" and words[3:4] == ["wheel"])


def test_it_runs_as_nobody_special_and_asks_for_a_token():
    steps = [step for step, _ in STEPS]
    assert STEPS[steps.index("USER")][1] == ["1000:1000"]
    assert "RUN" not in steps[steps.index("USER") :]
    variables = dict(word.split("=", 1) for step, words in STEPS if step == "ENV" for word in words)
    assert variables["RAY_AUTH_MODE"] == "token"
    assert not [name for name in variables if re.search(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY", name)]
