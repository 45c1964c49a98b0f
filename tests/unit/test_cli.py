"""The command line as a person meets it: real processes, their exit codes and their two streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import affine
import numpy as np
import pytest
import rasterio
import yaml

from rayjobs.cli import VERBS


@pytest.fixture
def rayjobs(tmp_path):
    def run(*arguments):
        environment = {**os.environ, "RAYJOBS_LOG_DIR": str(tmp_path / "logs")}
        command = [sys.executable, "-c", "from rayjobs.cli import main; main()"]
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path, env=environment
        )

    return run


@pytest.fixture
def experiment(tmp_path):
    """An experiment on one small raster."""
    values = np.random.default_rng(0).integers(1, 255, (3, 256, 256)).astype(np.uint8)
    place = {"crs": "EPSG:32631", "transform": affine.Affine(10, 0, 5e5, 0, -10, 5e6)}
    with rasterio.open(tmp_path / "scene.tif", "w", driver="GTiff", width=256, height=256, count=3, dtype="uint8", **place) as file:
        file.write(values)
    raw = {
        "name": "small",
        "workspace": {"uri": str(tmp_path / "workspace")},
        "rasters": {"sources": [{"kind": "files", "uris": [str(tmp_path / "scene.tif")]}]},
        "tiles": {"size": 32, "sampler": {"kind": "grid"}, "splits": {"train": 1.0, "val": 0.0, "test": 0.0}},
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_help_lists_the_verbs(rayjobs):
    done = rayjobs("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"  {verb}" in done.stdout for verb in VERBS)


@pytest.mark.parametrize("arguments", [(), ("smaple",), ("--config", "x.yaml")])
def test_no_verb_or_an_unknown_one_is_a_usage_error(rayjobs, arguments):
    done = rayjobs(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: rayjobs VERB" in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(rayjobs, verb):
    done = rayjobs(verb, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: rayjobs {verb}")
    if verb != "demo":
        assert all(word in done.stdout for word in ("--config", "--dry-run", "--json", "--tiles.size", "--workspace.uri", "--serve.port"))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--tiles.sise", "3"], "unknown key 'tiles.sise'; did you mean 'tiles.size'?"),
        (["--tiles.size", "-1"], "tiles.size = -1"),
        (["--tiles.size"], "--tiles.size needs a value"),
        (["stray"], "cannot read the argument 'stray'"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_and_exit_2(rayjobs, experiment, tmp_path, extra, words):
    done = rayjobs("sample", "--config", str(experiment), "--dry-run", *extra)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("rayjobs sample: ")
    assert words in line
    assert not (tmp_path / "workspace").exists()


def test_a_missing_file_is_exit_2(rayjobs):
    done = rayjobs("train", "--config", "nowhere.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert "cannot read the experiment file nowhere.yaml" in line


def test_imagery_that_cannot_serve_is_exit_1(rayjobs, experiment, tmp_path):
    (tmp_path / "scene.tif").unlink()
    done = rayjobs("sample", "--config", str(experiment), "--dry-run", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "scene.tif" in done.stderr


def test_a_dry_run_ends_stdout_with_one_json_object_and_makes_nothing(rayjobs, experiment, tmp_path):
    done = rayjobs("sample", "--config", str(experiment), "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["verb"] == "sample"
    assert answer["tiles"] == 64
    assert done.stderr == ""
    assert not (tmp_path / "workspace").exists()


def test_a_mistyped_verb_is_told_its_nearest(rayjobs):
    done = rayjobs("smaple")
    assert done.returncode == 2
    assert "'smaple'; did you mean 'sample'?" in done.stderr
    assert not done.stdout
