"""Tell Ray of the notice that EC2 gives two minutes before it takes a spot instance away, so that training makes a checkpoint at once.

Runs beside Ray on a worker node, `python spot_notice.py HEAD:6379`, until the notice comes; ends at once where the instance is not of the
spot market. It asks the instance's metadata service (IMDSv2), whose address AWS_EC2_METADATA_SERVICE_ENDPOINT may change.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import ray

_SERVICE = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
_EVERY_S = 5.0
"""Between two looks, as AWS advises."""
_PATIENCE_S = 2.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the service is of this machine: no proxy can reach it


def main(address: str) -> None:
    """Wait for the notice, then have Ray drain this node."""
    if asked("instance-life-cycle") != "spot":
        return
    while (left := seconds_left()) is None:
        time.sleep(_EVERY_S)
    print(f"spot_notice: the instance goes in {left} s; draining", flush=True)  # noqa: T201  its log
    subprocess.run(drain(address, this_node(address), left), check=True)  # noqa: S603  our own words


def asked(path: str) -> str | None:
    """Return what the metadata service says under a path, None where it has nothing or does not answer."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _sent(urllib.request.Request(f"{_SERVICE}/latest/api/token", method="PUT", headers=lifetime))  # noqa: S310  http alone
    if token is None:
        return None
    shown = {"X-aws-ec2-metadata-token": token}
    return _sent(urllib.request.Request(f"{_SERVICE}/latest/meta-data/{path}", headers=shown))  # noqa: S310  http alone


def _sent(request: urllib.request.Request) -> str | None:
    try:
        with _DIRECT.open(request, timeout=_PATIENCE_S) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return None


def seconds_left() -> int | None:
    """Return the seconds until the instance is taken, None while there is no notice."""
    notice = asked("spot/instance-action")
    if notice is None:
        return None
    when = datetime.datetime.fromisoformat(json.loads(notice)["time"])
    return max(0, int((when - datetime.datetime.now(datetime.UTC)).total_seconds()))


def this_node(address: str) -> str:
    """Return Ray's name of the node that this process runs on."""
    ray.init(address=address, log_to_driver=False)
    try:
        return str(ray.get_runtime_context().get_node_id())
    finally:
        ray.shutdown()


def drain(address: str, node: str, seconds: int) -> list[str]:
    """Return the command that tells Ray: nothing new starts on the node, and what runs there learns of its end."""
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "EC2 takes this spot instance away"]
    return [*command, "--deadline-remaining-seconds", str(seconds)]


if __name__ == "__main__":
    main(sys.argv[1])
