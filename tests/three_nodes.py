"""One Ray cluster of a head and two workers for the whole session, each a real `ray start`, and what is sampled and trained on it.

Its fixtures are known to all tests; those of `tests/jobs` and `tests/faults` use them.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict:
        """The JSON object that ends stdout."""
        return json.loads(self.out.strip().splitlines()[-1])


@dataclass(frozen=True)
class RayCluster:
    """Three nodes, and the environment in which commands find them."""

    address: str
    dashboard: str
    environment: dict[str, str]
    nodes: list[subprocess.Popen]
    """Each node's `ray start --block`, those that ended included; the first is the head."""

    def start(self, verb: str, *arguments: str, **environment: str) -> subprocess.Popen:
        """Begin `rayjobs VERB` on the cluster."""
        command = [sys.executable, "-m", f"rayjobs.{verb}", *arguments]
        return subprocess.Popen(
            ["env", "--default-signal=INT", *command],  # which is ignored where the tests themselves run in the background
            cwd=ROOT,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, verb: str, *arguments: str, **environment: str) -> Done:
        """Run `rayjobs VERB` on the cluster to its end."""
        process = self.start(verb, *arguments, **environment)
        out, err = process.communicate(timeout=400)
        return Done(process.returncode, out, err)

    def submit(self, verb: str, *arguments: str) -> Done:
        """Run a verb through the job API, with the working directory shipped."""
        command = [
            str(RAY),
            "job",
            "submit",
            "--address",
            self.dashboard,
            "--working-dir",
            ".",
            "--",
            "python",
            "-m",
            f"rayjobs.{verb}",
            *arguments,
        ]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=500, check=False)
        return Done(done.returncode, done.stdout, done.stderr)

    def add_node(self) -> None:
        """Start a worker node in place of one that was killed; wait until the cluster has three nodes again."""
        _join(
            _worker(self.address, self.environment["RAY_TMPDIR"]),
            self.nodes,
            NODES,
            self.address,
            self.environment,
            self.environment["RAY_TMPDIR"],
        )

    def raylet(self, node: subprocess.Popen) -> int:
        """Return the id of a node's raylet, with which its workers end."""
        children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
        named = {pid: Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0] for pid in children}
        return next(int(pid) for pid, name in named.items() if name.endswith("raylet"))

    def processes(self, title: str) -> list[int]:
        """Return the ids of this cluster's processes, oldest first, whose command line begins so."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                named = (process / "cmdline").read_bytes().startswith(title.encode())
                ours = named and f"RAY_TMPDIR={self.environment['RAY_TMPDIR']}".encode() in (process / "environ").read_bytes()
            except OSError:
                continue
            if ours:
                found.append(int(process.name))
        return sorted(found)


_TRIES = 3
NODES = 3
_COMMON = ["--object-store-memory=157286400", "--disable-usage-stats", "--block"]


def _worker(address: str, folder: str) -> list[str]:
    """Return the arguments of a node. It has a temporary folder of its own, as on a machine of its own.

    With a common one, the node that a job reaches next unpacks the job's working directory anew, in place of the one that others work in.
    """
    return [f"--address={address}", "--num-cpus=1", f"--temp-dir={tempfile.mkdtemp(prefix=f'{folder}-')}", *_COMMON]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def cluster(s3_server):
    folder = tempfile.mkdtemp(prefix="rayjobs-ray-", dir="/tmp")  # Ray's sockets want a short path
    token = secrets.token_hex(32)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))},
        **s3_server.environment,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_TMPDIR": folder,
        "RAYJOBS_LOG_DIR": f"{folder}/logs",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
        "RAY_health_check_period_ms": "1000",  # as the shipped clusters have it
        "RAY_worker_niceness": "0",  # else workers get what a busy machine has left, and commands time out waiting for them
    }
    port, dashboard = free_port(), free_port()
    head = [
        "--head",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        "--dashboard-host=127.0.0.1",
        "--num-cpus=1",
        f"--temp-dir={folder}",
        f"--ray-client-server-port={free_port()}",
    ]
    nodes = [_start([*head, *_COMMON], environment, folder)]
    try:
        address = f"{_own_address()}:{port}"
        assert _wait(address, environment, nodes[-1], count=1), Path(folder, "nodes.log").read_text()[-3000:]
        for count in range(2, NODES + 1):  # one after the other: together they time out on a busy machine
            _join(_worker(address, folder), nodes, count, address, environment, folder)
        yield RayCluster(address, f"http://127.0.0.1:{dashboard}", environment | {"RAY_ADDRESS": address}, nodes)
    finally:
        for node in reversed(nodes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
        _kill_strays(folder)
        for of_node in Path("/tmp").glob(f"{Path(folder).name}*"):
            shutil.rmtree(of_node, ignore_errors=True)


# One CPU per node: three nodes share a developer's two cores, and every process more costs the seconds of importing torch.


def _start(arguments, environment, folder):
    # Every node's agent would listen on 52365; one that finds it taken, by another cluster of this machine, takes no jobs.
    arguments = [*arguments, f"--dashboard-agent-listen-port={free_port()}"]
    with Path(folder, "nodes.log").open("ab") as log:
        return subprocess.Popen([str(RAY), "start", *arguments], env=environment, stdout=log, stderr=log, start_new_session=True)


def _own_address() -> str:
    import ray.util

    return ray.util.get_node_ip_address()


def _join(arguments, nodes, count, address, environment, folder):
    """Start a node, and start it again where it gave up, as Ray does after 30 s of a busy machine."""
    for _ in range(_TRIES):
        nodes.append(_start(arguments, environment, folder))
        if _wait(address, environment, nodes[-1], count=count):
            return
    raise RuntimeError(f"node {count} did not come up: {Path(folder, 'nodes.log').read_text()[-3000:]}")


def _wait(address, environment, node, *, count):
    """Return whether the cluster has so many nodes; False if the node that was started last has ended."""
    code = f"import ray; ray.init('{address}', log_to_driver=False); print('NODES', sum(n['Alive'] for n in ray.nodes()))"
    deadline = time.monotonic() + 180
    said = ""
    while time.monotonic() < deadline:
        if node.poll() is not None:
            return False
        try:
            done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=40)
        except subprocess.TimeoutExpired:
            continue
        said = done.stdout + done.stderr
        if f"NODES {count}" in done.stdout:
            return True
        time.sleep(1)
    log = Path(environment["RAY_TMPDIR"], "nodes.log").read_text()
    raise RuntimeError(f"the cluster did not come up: {said[-2000:]} {log[-3000:]}")


def _kill_strays(folder):
    """End what left the process groups of our nodes; our own are known by the temporary folder in their environment."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"RAY_TMPDIR={folder}".encode() in (process / "environ").read_bytes()
        except OSError:
            continue
        if ours and int(process.name) != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)


def write_scene(path, *, left=400000, side=512, nodata=None, valid_rows=None):
    """Write a made-up scene of three bands; with `valid_rows`, all others are `nodata`."""
    values = np.random.default_rng(left).integers(1, 255, (3, side, side), dtype=np.uint8)
    if valid_rows is not None:
        values[:, valid_rows:] = nodata
    grid = {"crs": "EPSG:32612", "transform": rasterio.Affine(10, 0, left, 0, -10, 4100000), "width": side, "height": side}
    blocks = {"tiled": True, "blockxsize": 128, "blockysize": 128}
    with rasterio.open(path, "w", driver="GTiff", dtype="uint8", count=3, nodata=nodata, **grid, **blocks) as file:
        file.write(values)
    return path


@pytest.fixture(scope="session")
def imagery(tmp_path_factory):
    """A folder with one made-up scene."""
    folder = tmp_path_factory.mktemp("imagery")
    write_scene(folder / "scene.tif")
    return folder


@pytest.fixture(scope="session")
def config(imagery):
    path = imagery / "experiment.yaml"
    path.write_text(
        json.dumps(
            {
                "name": "made-up",
                "rasters": {"sources": [{"kind": "files", "uris": [f"{imagery}/*.tif"]}]},
                "tiles": {"size": 16, "sampler": {"kind": "grid"}, "min_neg_dist": 3.0, "splits": {"block_m": 1500}},
                "model": {"backbone": "resnet10t", "dim": 8, "input_size": 32},
                "loss": {"kind": "ntxent"},
                "miner": {"kind": "none"},
                "mining": {"every": 1, "first": 0},
                "train": {"epochs": 3, "steps_per_epoch": 4, "batch_size": 24, "precision": "fp32"},
                "tracking": {"enabled": False},
            }
        )
    )
    return path


def options(config, workspace, *more):
    """Point a command at a configuration and a workspace."""
    return ["--config", str(config), "--workspace.uri", workspace, "--json", *more]
