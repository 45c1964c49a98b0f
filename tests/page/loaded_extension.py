"""The extension in a browser, and a page that stands for Worldview.

Leave to reach an address is asked for in a dialog of the browser that no program can answer. So a copy of the extension is loaded whose
manifest grants the service and that page beforehand; all else is the extension as it is.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import threading
from pathlib import Path

from tests.page.conftest import CHROMIUM, WAIT_MS

EXTENSION = Path(__file__).parents[2] / "extension"


class Worldview(http.server.BaseHTTPRequestHandler):
    """A page at any address, and pictures of views: the one that a test has put there."""

    picture, drawn = b"", ""

    def do_GET(self):
        is_picture = self.path.startswith("/snapshot")
        if is_picture:
            Worldview.drawn = self.path
        self.send_response(200)
        self.send_header("content-type", "image/png" if is_picture else "text/html")
        self.end_headers()
        self.wfile.write(self.picture if is_picture else b"<!doctype html><title>Worldview</title>")

    def log_message(self, *_):
        """Say nothing."""


@contextlib.contextmanager
def worldview_page():
    """Serve the page for the length of the block, and yield its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Worldview)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def loaded(browser, folder, granted):
    """A browser with the extension, which may reach these addresses; and the extension's own address."""
    copy = Path(shutil.copytree(EXTENSION, folder / "extension"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["host_permissions"] += [f"{origin}/*" for origin in granted]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    context = browser.browser_type.launch_persistent_context(
        folder / "profile", executable_path=CHROMIUM, headless=False, ignore_default_args=["--disable-extensions"], color_scheme="light",
        args=["--headless=new", "--no-sandbox", f"--disable-extensions-except={copy}", f"--load-extension={copy}"],
    )  # fmt: skip
    try:
        context.set_default_timeout(WAIT_MS)
        worker = context.service_workers[0] if context.service_workers else context.wait_for_event("serviceworker")
        yield context, worker
    finally:
        context.close()
