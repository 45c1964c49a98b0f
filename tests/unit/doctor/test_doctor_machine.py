"""What is said of this machine."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import numpy
import pytest
from packaging.requirements import Requirement

from rayjobs.cluster.section import RaySection
from rayjobs.doctor import machine


@pytest.mark.parametrize(
    ("requirement", "said"),
    [
        ("numpy>=1", None),
        ("numpy<1", f"numpy {numpy.__version__} is not <1"),
        ("no-such-package-here>=3", "no-such-package-here is not installed (>=3)"),
    ],
)
def test_a_package_is_compared_with_its_range(requirement, said):
    assert list(machine.compared([Requirement(requirement)]).values()) == [said]


def test_packages_of_extras_and_of_other_systems_do_not_count():
    wanted = ["absent-one>=1; extra == 'dev'", "absent-two>=1; sys_platform == 'plan9'"]
    assert machine.compared(map(Requirement, wanted)) == {}


def test_the_packages_of_this_environment_are_in_range_as_pip_says():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert (machine.packages().state == "ok") == ("rayjobs" not in done.stdout)
    assert importlib.metadata.version("rayjobs") in machine.packages().finding


def test_a_library_that_does_not_load_is_told(tmp_path, monkeypatch):
    (tmp_path / "brokenlib.py").write_text("raise OSError('libcuda.so.1: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(machine, "_LOADED", ("numpy", "brokenlib"))
    check = machine.libraries()
    assert check.state == "fault"
    assert "brokenlib (libcuda.so.1: cannot open)" in check.finding
    assert "numpy" not in check.finding


def test_this_machine_can_be_looked_at(tmp_path):
    assert machine.python().state == "ok"
    assert 0 < machine.memory_available() < 2**50
    assert "GiB of memory free" in machine.memory().finding
    assert str(tmp_path) in machine.disk("machine/disk", tmp_path).finding
    assert machine.clock().state in {"ok", "caution"}
    assert "torch" in machine.gpu(asked="auto").finding


@pytest.mark.parametrize(
    ("cpus", "memory_mb", "shm_mb", "state", "words"),
    [
        (4, 8000, 1000, "ok", "512 MiB of 1,000 MiB"),
        (4, 1400, 1000, "fault", "too little"),
        (4, 8000, 64, "caution", "--shm-size"),
        (1, 8000, 1000, "caution", "--ray.num_cpus 1"),
    ],
)
def test_whether_a_local_ray_has_room(cpus, memory_mb, shm_mb, state, words):
    from rayjobs.doctor.cluster import room_judged

    check = room_judged(RaySection(num_cpus=4), cpus=cpus, memory=memory_mb * 2**20, shm=shm_mb * 2**20)
    assert check.state == state
    assert words in check.finding + check.remedy
