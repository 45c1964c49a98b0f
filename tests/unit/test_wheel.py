"""The wheel holds everything that the project needs to run, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
VERBS = ("sample", "train", "evaluate", "embed", "index", "label", "serve", "query", "doctor", "demo")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of what git tracks, so that no build folder is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    [path] = out.glob("*.whl")
    return path


def test_it_holds_every_module_and_no_test(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(["git", "ls-files", "rayjobs"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert held == {name for name in tracked if (ROOT / name).is_file()}


def test_a_job_that_brings_it_installs_it_by_itself(wheel, tmp_path):
    """What Ray runs on a node for a wheel among `py_modules`; without PIP_NO_DEPS it would fetch torch and Ray anew."""
    written = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    for command in (*written["head_start_ray_commands"], *written["worker_start_ray_commands"]):
        assert "ray start" not in command or "PIP_NO_DEPS=1" in command
    environment = {**os.environ, "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1"}
    subprocess.run(
        [sys.executable, "-m", "pip", "install", str(wheel), f"--target={tmp_path}"], env=environment, check=True, capture_output=True
    )
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {"rayjobs", "bin"}


def test_it_runs_outside_the_checkout(wheel, tmp_path):
    target = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    asking = [sys.executable, "-c", "import rayjobs; print(rayjobs.__file__)"]
    where = subprocess.run(asking, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert Path(where.stdout.strip()).is_relative_to(target)
    for verb in VERBS:
        done = subprocess.run(
            [sys.executable, "-m", f"rayjobs.{verb}", "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"usage: rayjobs {verb}")
