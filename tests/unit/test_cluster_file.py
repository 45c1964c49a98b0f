"""`cluster.yaml` as `ray up` reads it, up to the point where it would ask AWS for anything."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private import util

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def written():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def prepared(written):
    """The configuration with Ray's defaults, checked against Ray's schema as `ray up` does first of all."""
    config = util.prepare_config(written)
    util.validate_config(config)
    return config


def test_rays_schema_refuses_what_it_does_not_know(prepared):
    with pytest.raises(jsonschema.ValidationError, match="gpu_workers"):
        util.validate_config({**prepared, "gpu_workers": 1})


@pytest.mark.parametrize("kind", ["gpu-spot", "gpu"])
def test_gpu_workers_come_and_go_with_demand(prepared, kind):
    gpu = prepared["available_node_types"][kind]
    assert gpu["min_workers"] == 0
    assert 0 < gpu["max_workers"] <= prepared["max_workers"]
    assert gpu["node_config"]["InstanceType"].split(".")[0] in {"g4dn", "g5", "g6", "p3", "p4d", "p5"}
    assert prepared["idle_timeout_minutes"] > 0


@pytest.mark.parametrize("kind", ["head", "cpu-spot", "cpu", "gpu-spot", "gpu"])
def test_every_node_installs_this_project_and_starts_rays_of_that_installation(prepared, kind):
    own = prepared["available_node_types"][kind]
    common = prepared["head_setup_commands"] if kind == "head" else prepared["worker_setup_commands"]
    commands = own.get("worker_setup_commands", common)
    mounted = next(there for there, here in prepared["file_mounts"].items() if Path(ROOT, here).resolve() == ROOT)
    folder = mounted.replace("/home/ubuntu", "~")
    installing = [command for command in commands if "pip install" in command]
    assert any(command.endswith(folder) and f"{folder}/constraints.txt" in command for command in installing)
    start = prepared["head_start_ray_commands" if kind == "head" else "worker_start_ray_commands"]
    assert any("~/venv/bin/ray start" in command for command in start)


def test_what_the_setup_names_is_in_the_checkout(prepared):
    assert (ROOT / "constraints.txt").is_file()
    assert all((ROOT / name).is_file() for name in prepared["rsync_filter"])


def test_no_port_is_open_to_the_world(written):
    assert "--dashboard-host=127.0.0.1" in " ".join(written["head_start_ray_commands"])
    assert all("RAY_AUTH_MODE=token" in command for command in written["head_start_ray_commands"] + written["worker_start_ray_commands"])
