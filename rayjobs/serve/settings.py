"""What the application is built from.

Ray Serve reads the types of its fields, so that annotations here are not postponed.
"""

import os
import tempfile
from pathlib import Path

import pydantic

from rayjobs.serve.section import ServiceSection
from rayjobs.storage import Artefact, Version, open_store

CACHE = "RAYJOBS_CACHE"
"""Variable that names the folder for copies of what lies in a bucket, one per node."""


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
        """Folder for copies of what lies in a bucket; all processes of a node, and of its user, share it."""
        return Path(os.environ.get(CACHE) or Path(tempfile.gettempdir(), f"rayjobs-index-{os.getuid()}"))
