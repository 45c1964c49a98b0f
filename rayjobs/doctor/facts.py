"""What a node says of itself. Sent by value, so that a node answers that lacks rayjobs: nothing but Python's own library at the top."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import pathlib
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from typing import Any

_FAISS = ("faiss-gpu", "faiss-cpu")


class Witness:
    """Answers for one node."""

    def tell(self) -> dict[str, Any]:
        """Return versions (None where something is absent), GPUs, and free bytes of disk and of shared memory, of this node."""
        return {
            "host": socket.gethostname(),
            "python": platform.python_version(),
            "ray": _version("ray"),
            **_code(),
            "torch": _version("torch"),
            "rasterio": _version("rasterio"),
            "gdal": _attribute("rasterio", "__gdal_version__"),
            "faiss": next((found for found in map(_version, _FAISS) if found), None),
            "numpy": _version("numpy"),
            "gpus": _gpus(),
            "disk_bytes": shutil.disk_usage(tempfile.gettempdir()).free,
            "disk_used": _share_used(tempfile.gettempdir()),
            "shm_bytes": _total("/dev/shm"),  # noqa: S108  where Linux keeps shared memory
        }

    def now(self) -> float:
        """Return this node's clock, Unix seconds."""
        return time.time()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _attribute(module: str, name: str) -> str | None:
    try:
        return str(getattr(importlib.import_module(module), name, None))
    except Exception as error:  # noqa: BLE001  a library fails to load in any way it likes
        return f"cannot be loaded ({type(error).__name__})"


def _code() -> dict[str, str | None]:
    """Return the version of rayjobs, and a digest of its code, which tells checkouts of one version apart."""
    try:
        ours = importlib.import_module("rayjobs")
    except ImportError:
        return {"rayjobs": None, "code": None}
    digest = hashlib.sha256()
    root = pathlib.Path(str(ours.__file__)).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return {"rayjobs": str(ours.__version__), "code": digest.hexdigest()[:12]}


def _gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603  a fixed command
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def _share_used(folder: str) -> float:
    usage = shutil.disk_usage(folder)
    return usage.used / usage.total


def _total(folder: str) -> int:
    return shutil.disk_usage(folder).total if pathlib.Path(folder).is_dir() else 0
