"""The `ray` section of the experiment file."""

from __future__ import annotations

from typing import Literal

from rayjobs.config import section


@section
class RaySection:
    """Which Ray a command uses."""

    address: str | None = None
    """Cluster to join; default RAY_ADDRESS, else a local Ray is started and stopped with the command."""
    num_cpus: int | None = None
    """CPUs of a local Ray; default all."""
    gpu: Literal["auto", "yes", "no"] = "auto"
    """Whether workers that compute with the network ask for a GPU each: `auto` if a node that is up has one, `yes` also where none is up
    yet, so that an autoscaling cluster starts one."""
    object_store_mb: int = 512
    """Shared memory of a local Ray, in MiB."""
