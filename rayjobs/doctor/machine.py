"""This machine: Python, packages, GPU, memory, disk and clock."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rayjobs.doctor.checks import Check, Look, Patient, caution, fault, ok
from rayjobs.errors import first_few

if TYPE_CHECKING:
    from collections.abc import Iterable

_OURS = "rayjobs"
_INSTALL = "install rayjobs anew, with its own constraints: pip install -c constraints.txt rayjobs"
_LOADED = ("numpy", "pyarrow", "rasterio", "torch", "faiss", "ray")
"""Packages with libraries of their own, which may be there and not load."""
_LEAST_MEMORY = 2 * 2**30
_LEAST_DISK = 5 * 2**30
_FULL = 0.95
"""Ray takes no more on a disk that is so full."""
_SHM = Path("/dev/shm")  # noqa: S108  where Linux keeps shared memory
_UNSYNCHRONISED = 5
"""What Linux's `adjtimex` returns where nothing keeps the clock."""
_GIB = 2**30


def looks(patient: Patient) -> dict[str, Look]:
    """Return what to look at."""
    return {
        "machine/python": python,
        "machine/packages": packages,
        "machine/libraries": libraries,
        "machine/gpu": functools.partial(gpu, asked=patient.ray.gpu),
        "machine/memory": memory,
        "machine/disk": functools.partial(disk, "machine/disk", Path(tempfile.gettempdir())),
        "machine/clock": clock,
    }


def python() -> Check:
    """Compare Python with what the installed distribution asks for."""
    have = platform.python_version()
    stated = importlib.metadata.metadata(_OURS)
    wanted = stated["Requires-Python"] if "Requires-Python" in stated else ""  # noqa: SIM401  its type has no `get`
    if not SpecifierSet(wanted).contains(have, prereleases=True):
        return fault("machine/python", f"Python {have}, and rayjobs needs {wanted}", f"make an environment with Python {wanted}")
    return ok("machine/python", f"Python {have}; rayjobs needs {wanted}")


def packages() -> Check:
    """Compare the installed packages with the ranges that the installed distribution states."""
    found = compared([Requirement(text) for text in importlib.metadata.requires(_OURS) or []])
    wrong = [said for said in found.values() if said]
    if wrong:
        return fault(
            "machine/packages", f"{len(wrong)} of {len(found)} packages are not as rayjobs needs them: {first_few(wrong)}", _INSTALL
        )
    version = importlib.metadata.version(_OURS)
    return ok("machine/packages", f"rayjobs {version}: all {len(found)} packages are in the ranges that it states")


def compared(requirements: Iterable[Requirement]) -> dict[str, str | None]:
    """Return what is wrong with each required package, None where nothing is; extras do not count."""
    found: dict[str, str | None] = {}
    for wanted in requirements:
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            have = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            found[wanted.name] = f"{wanted.name} is not installed ({wanted.specifier})"
            continue
        good = wanted.specifier.contains(have, prereleases=True)
        found[wanted.name] = None if good else f"{wanted.name} {have} is not {wanted.specifier}"
    return found


def libraries() -> Check:
    """Load the packages that bring libraries of their own."""
    wrong = [said for said in map(_unloadable, _LOADED) if said]
    if wrong:
        return fault("machine/libraries", f"cannot be loaded: {first_few(wrong)}", _INSTALL)
    versions = ", ".join(f"{name} {getattr(importlib.import_module(name), '__version__', '?')}" for name in _LOADED)
    return ok("machine/libraries", versions)


def _unloadable(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001  a library fails to load in any way it likes
        return f"{name} ({str(error).partition(chr(10))[0]})"
    return None


def gpu(*, asked: str) -> Check:
    """Look for a GPU as torch sees it, and compute something there."""
    import torch  # noqa: PLC0415  so that all else is looked at where it cannot be loaded

    if torch.cuda.is_available():
        names = [_described(number) for number in range(torch.cuda.device_count())]
        torch.ones(64, 64, device="cuda").matmul(torch.ones(64, 64, device="cuda")).sum().item()
        return ok("machine/gpu", f"{len(names)}: {first_few(names)}; torch {torch.__version__} computes there")
    told = f"torch {torch.__version__} finds no GPU"
    if shutil.which("nvidia-smi"):
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        remedy = "compare the CUDA version that nvidia-smi shows, and CUDA_VISIBLE_DEVICES; install a torch for that version"
        return caution("machine/gpu", f"{told}, although nvidia-smi is here; it is {built}", remedy)
    if asked == "yes":
        remedy = "leave it where a cluster has GPUs that it starts when asked; else set --ray.gpu auto"
        return caution("machine/gpu", f"{told}, and ray.gpu is yes", remedy)
    return ok("machine/gpu", f"{told}; networks are computed on the CPU")


def _described(number: int) -> str:
    import torch  # noqa: PLC0415  see above

    free, total = torch.cuda.mem_get_info(number)
    return f"{torch.cuda.get_device_name(number)}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free"


def memory_available() -> int:
    """Return the bytes of memory that a process may still take here: the machine's, or its container's where that is less."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    limit, used = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and (most := limit.read_text(encoding="ascii").strip()) != "max":
        return min(free, int(most) - int(used.read_text(encoding="ascii")))
    return free


def memory() -> Check:
    """Tell memory and processors."""
    free, cpus = memory_available(), len(os.sched_getaffinity(0))
    said = f"{free / _GIB:.1f} GiB of memory free, {cpus} CPUs"
    if free < _LEAST_MEMORY:
        return caution("machine/memory", said, "end other work, or take a machine with more: Ray ends workers where memory runs out")
    return ok("machine/memory", said)


def disk(name: str, folder: Path) -> Check:
    """Tell how much room there is on the disk of a folder."""
    usage = shutil.disk_usage(folder)
    said = f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.0f} GiB free at {folder}"
    if usage.used > _FULL * usage.total:
        return fault(name, f"{said}: Ray writes nothing more where {_FULL:.0%} is used", "make room, or choose another folder")
    if usage.free < _LEAST_DISK:
        return caution(name, said, "make room: chips, checkpoints and segments pass through here")
    return ok(name, said)


def shared_memory() -> int:
    """Return the free bytes of shared memory; 0 where there is none."""
    return shutil.disk_usage(_SHM).free if _SHM.is_dir() else 0


def clock() -> Check:
    """Ask the kernel whether something keeps the clock right."""
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # asks for no change; larger than `struct timex`
    if state == _UNSYNCHRONISED:
        remedy = "run chrony, ntpd or systemd-timesyncd, or, in a container, on its host: leases and signed requests need the time"
        return caution("machine/clock", "the kernel says that nothing keeps this clock right", remedy)
    return ok("machine/clock", "kept right, says the kernel" if state >= 0 else "the kernel does not say whether it is kept right")
