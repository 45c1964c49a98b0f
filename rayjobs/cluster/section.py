"""The `ray` section of the experiment file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from rayjobs.config import section


def _in_words(value: Any) -> Any:
    """Return the word that YAML took for a truth value: to it, a bare `yes` is one."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


@section
class RaySection:
    """Which Ray a command uses."""

    address: str | None = None
    """Cluster to join; default RAY_ADDRESS, else a local Ray is started and stopped with the command."""
    num_cpus: int | None = None
    """CPUs of a local Ray; default all."""
    gpu: Annotated[Literal["auto", "yes", "no"], pydantic.BeforeValidator(_in_words)] = "auto"
    """Whether workers that compute with the network ask for a GPU each: `auto` if a node that is up has one, `yes` also where none is up
    yet, so that an autoscaling cluster starts one."""
    object_store_mb: int = 512
    """Shared memory of a local Ray, in MiB."""
