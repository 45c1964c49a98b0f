"""The watcher of spot notices, with a metadata service of this machine that speaks IMDSv2."""

from __future__ import annotations

import datetime
import http.server
import importlib.util
import json
import threading
from pathlib import Path

import pytest
from ray.scripts.scripts import drain_node

SCRIPT = Path(__file__).parents[3] / "deploy/spot_notice.py"
TOKEN = "of-this-session"


class Service(http.server.BaseHTTPRequestHandler):
    """Answers as EC2's does: a token for a PUT that names its lifetime, then what lies under a path for who shows it."""

    def do_PUT(self):
        lives = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        known = self.path == "/latest/api/token" and lives and 1 <= int(lives) <= 21600
        self._answer(200 if known else 400, TOKEN if known else "")

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
            self._answer(401, "")
            return
        held = self.server.held.get(self.path.removeprefix("/latest/meta-data/"), [])
        value = held.pop(0) if len(held) > 1 else next(iter(held), None)
        self._answer(404 if value is None else 200, value or "")

    def _answer(self, status, text):
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def service():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        server.held, server.asked = {}, []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def watcher(service, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{service.server_port}/")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # which must not be asked
    spec = importlib.util.spec_from_file_location("spot_notice", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "_EVERY_S", 0.0)
    monkeypatch.setattr(module, "this_node", lambda _: "ab" * 28)
    return module


def notice(seconds):
    when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": f"{when:%Y-%m-%dT%H:%M:%SZ}"})


@pytest.fixture
def ran(watcher, monkeypatch):
    commands = []
    monkeypatch.setattr(watcher.subprocess, "run", lambda command, **_: commands.append(command))
    return commands


@pytest.mark.parametrize("seconds", [120, 7])
def test_ray_is_told_when_the_notice_comes(service, watcher, ran, seconds):
    service.held = {"instance-life-cycle": ["spot"], "spot/instance-action": [None, None, notice(seconds)]}
    watcher.main("10.0.0.1:6379")
    assert service.asked.count("/latest/meta-data/spot/instance-action") == 3
    [command] = ran
    assert Path(command[0]).name == "ray"
    assert command[1] == drain_node.name
    said = drain_node.make_context("ray drain-node", command[2:]).params  # by Ray's own reading of its options
    assert said["address"] == "10.0.0.1:6379"
    assert said["node_id"] == "ab" * 28
    assert said["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert seconds - 5 <= said["deadline_remaining_seconds"] <= seconds


def test_a_notice_whose_time_is_over_is_told_too(service, watcher, ran):
    service.held = {"instance-life-cycle": ["spot"], "spot/instance-action": [notice(-30)]}
    watcher.main("10.0.0.1:6379")
    assert ran[0][-1] == "0"


@pytest.mark.parametrize("held", [{"instance-life-cycle": ["on-demand"]}, {}])
def test_other_machines_are_not_watched(service, watcher, ran, held):
    service.held = held
    watcher.main("10.0.0.1:6379")
    assert not ran
    assert service.asked == ["/latest/meta-data/instance-life-cycle"]


def test_without_a_metadata_service_it_ends(service, watcher, ran, monkeypatch):
    monkeypatch.setattr(watcher, "_SERVICE", "http://127.0.0.1:9")
    watcher.main("10.0.0.1:6379")
    assert not ran
