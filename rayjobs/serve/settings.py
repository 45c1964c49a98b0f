"""What the application is built from.

Ray Serve reads the types of its fields, so that annotations here are not postponed.
"""

import os
import stat
import tempfile
from pathlib import Path

import pydantic

from rayjobs.errors import StorageError
from rayjobs.serve.section import ServiceSection
from rayjobs.storage import Artefact, Version, open_store

CACHE = "RAYJOBS_CACHE"
"""Variable that names a folder of the node for copies of what lies in a bucket; each user has an own one in it."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class AppSettings(pydantic.BaseModel):
    """What the application is built from; the `args` of a Serve YAML."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    workspace: str
    """URI of the workspace."""
    index: str
    """Name of the index."""
    index_version: str | None = None
    """What is served first; None takes the version that is current when the application is built."""
    token_required: bool = False
    """Whether a replica without a token in its environment refuses to start."""
    service: ServiceSection = ServiceSection()
    """Keys of the experiment's `serve` section but those of Ray Serve itself: `host`, `port`, `request_timeout_s` and `proxy`."""

    @property
    def published(self) -> Artefact:
        """The index with all its versions."""
        return Artefact(open_store(self.workspace), "indexes", self.index)

    def version(self) -> Version:
        """Return the index version to serve first. Raises `NotFoundError` where it is not there."""
        if self.index_version is None:
            return self.published.require("run `rayjobs index` first")
        return self.at(self.index_version)

    def at(self, version: str) -> Version:
        """Return an index version by name. Raises `NotFoundError` where it is not there."""
        return self.published.at(version)

    @property
    def cache(self) -> Path:
        """Folder for copies of what lies in a bucket, made where there is none; all processes of a node, and of its user, share it.

        Raises:
            StorageError: it cannot be made, or others could alter what is in it.
        """
        return _private(Path(os.environ.get(CACHE) or tempfile.gettempdir(), f"rayjobs-index-{os.getuid()}"))


def _private(folder: Path) -> Path:
    """Make a folder that only this user may enter; one that is there must be no one else's: its name in `/tmp` can be foreseen."""
    try:
        folder.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise StorageError(f"the folder {folder} for copies of an index cannot be made ({error}); set {CACHE} to one of your own") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & _OTHERS_WRITE:
        raise StorageError(f"other users could alter the copies of an index in {folder}; remove it, or set {CACHE} to a folder of your own")
    return folder
