"""MLflow's own server, to be killed and started again."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time


@contextlib.contextmanager
def tracking_server(port, folder):
    """Run MLflow's server as one process until the block ends; wait until it answers."""
    code = f"from mlflow.server import app; from werkzeug.serving import run_simple; run_simple('127.0.0.1', {port}, app, threaded=True)"
    where = f"sqlite:///{folder}/server.db"
    settings = {"_MLFLOW_SERVER_FILE_STORE": where, "_MLFLOW_SERVER_REGISTRY_STORE": where, "_MLFLOW_SERVER_ARTIFACT_ROOT": str(folder)}
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen([sys.executable, "-c", code], env=os.environ | settings, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.3)
        yield server
    finally:
        server.kill()
        server.wait()
