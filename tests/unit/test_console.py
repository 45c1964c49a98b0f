from __future__ import annotations

import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from rayjobs.console import Console, Stage

PROGRAM = """
import logging, os, subprocess, sys, warnings
from rayjobs.console import taken
with taken("test", verbose={verbose}) as console:
    os.write(1, b"below python, one\\n")
    os.write(2, b"below python, two\\n")
    print("printed"); print("complained", file=sys.stderr)
    subprocess.run(["sh", "-c", "echo of a child; echo of a child, loudly >&2"], check=True)
    logging.getLogger("ray").info("logged")
    warnings.warn("warned")
    console.say("ours, progress")
    console.result("ours, result")
    if {fail}:
        raise SystemExit(3)
print("afterwards")
"""
FOREIGN = ["below python, one", "below python, two", "printed", "complained", "of a child", "of a child, loudly", "logged", "warned"]


def run(tmp_path, *, verbose=False, fail=False):
    program = PROGRAM.format(verbose=verbose, fail=fail)
    environment = {"RAYJOBS_LOG_DIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_what_others_write_goes_to_the_log_file(tmp_path):
    done = run(tmp_path)
    assert (done.stdout, done.stderr) == ("ours, result\nafterwards\n", "ours, progress\n")
    [log] = tmp_path.iterdir()
    text = log.read_text()
    assert all(words in text for words in FOREIGN)
    assert "ours" not in text
    assert log.name.startswith("test-")


def test_verbose_shows_it_on_the_streams_and_writes_no_log(tmp_path):
    done = run(tmp_path, verbose=True)
    assert all(words in done.stdout + done.stderr for words in FOREIGN)
    assert not list(tmp_path.iterdir())


def test_streams_are_given_back_when_the_work_fails(tmp_path):
    done = run(tmp_path, fail=True)
    assert done.returncode == 3
    assert (done.stdout, done.stderr) == ("ours, result\n", "ours, progress\n")


def test_the_result_is_one_line_of_json():
    out, err = io.StringIO(), io.StringIO()
    Console(out, err).result_json({"verb": "sample", "tiles": 3, "name": "zwei\nZeilen"})
    assert json.loads(out.getvalue()) == {"verb": "sample", "tiles": 3, "name": "zwei\nZeilen"}
    assert out.getvalue().count("\n") == 1
    assert not err.getvalue()


def test_what_is_no_number_is_null_in_json():
    out = io.StringIO()
    told = {"loss": math.nan, "by": {"a": [1.5, math.inf, (-math.inf, 2)]}, 3: np.float64("nan"), "word": "NaN", "is": True}
    Console(out, io.StringIO()).result_json(told)
    assert "NaN" not in out.getvalue().replace('"NaN"', "")
    assert json.loads(out.getvalue()) == {"loss": None, "by": {"a": [1.5, None, [None, 2]]}, "3": None, "word": "NaN", "is": True}


def test_a_stage_off_a_terminal_tells_beginning_and_end_only_when_quick():
    stream = io.StringIO()
    with Stage("sample/read", 2000, "tiles", stream) as stage:
        for _ in range(2000):
            stage.advance(1, refused=7)
    first, last = stream.getvalue().splitlines()
    assert first.split() == ["sample/read", "0/2,000", "tiles", "(0%)"]
    assert "2,000/2,000 tiles (100%)" in last
    assert "refused 7" in last


@pytest.mark.parametrize("total", [0, 5])
def test_a_stage_without_units_is_done(total):
    stream = io.StringIO()
    with Stage("read", total, "tiles", stream):
        pass
    assert ("(100%)" in stream.getvalue()) == (total == 0)


def test_the_last_line_is_not_said_twice(monkeypatch):
    monkeypatch.setattr("rayjobs.console._LINE_EVERY_S", -1.0)  # as if each step took long
    stream = io.StringIO()
    with Stage("sample/read", 3, "tiles", stream) as stage:
        for _ in range(3):
            stage.advance(1, refused=0)
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["0/3", "1/3", "2/3", "3/3"]


def test_a_result_is_lines_for_people_and_no_python():
    out = io.StringIO()
    Console(out, io.StringIO()).result_table(
        {
            "version": "0123",
            "counts": {"scenes": 1200, "by_split": {"train": 3, "none": 1}, "kept": 4},
            "fresh": False,
            "quarantine": None,
            "chip_bytes": 3 * 2**20,
            "bytes_to_read": 0,
            "loss": 0.123456,
            "bands": ["red", "green"],
            "empty": [],
            "cautions": ["a" * 100, "b" * 100],
            "rows": [{"name": "x"}, {"name": "y"}],
        }
    )
    assert out.getvalue().splitlines() == [
        "version                     0123",
        "counts",
        "  scenes                    1,200",
        "  by_split                  train 3, none 1",
        "  kept                      4",
        "fresh                       no",
        "quarantine                  none",
        "chip_bytes                  3,145,728 (3.0 MiB)",
        "bytes_to_read               0 (0.0 MiB)",
        "loss                        0.123",
        "bands                       red, green",
        "empty                       none",
        "cautions",
        "  " + "a" * 100,
        "  " + "b" * 100,
        "rows                        2 entries; --json shows them",
    ]
