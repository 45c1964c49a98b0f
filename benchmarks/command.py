"""What the command lines of all benchmarks share: two options, and the object that `--json` ends with."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata

FAISS = "faiss-gpu" if sys.platform == "linux" and platform.machine() == "x86_64" else "faiss-cpu"
"""The distribution that FAISS comes in on this machine."""


def parser(name: str, description: str | None, *, quick: str) -> argparse.ArgumentParser:
    """Return a parser with `--json` and `--quick`.

    Args:
        name: of the benchmark's module.
        description: its docstring.
        quick: what `--quick` leaves out.
    """
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    made.add_argument("--json", action="store_true", help="end with one JSON object")
    made.add_argument("--quick", action="store_true", help=quick)
    return made


def end(name: str, figures: Mapping[str, float], packages: Sequence[str], **further: str) -> None:
    """Print the object that `--json` asks for: figures, machine, versions and command.

    Args:
        name: of the benchmark's module.
        figures: what was measured, by name.
        packages: distributions whose versions matter.
        further: versions of what is no distribution, such as a library within one.
    """
    versions = {"python": platform.python_version(), **further, **{package: metadata.version(package) for package in packages}}
    machine = {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()}
    command = shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    print(json.dumps({"figures": figures, "machine": machine, "versions": versions, "command": command}))
