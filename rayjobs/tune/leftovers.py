"""Places on the cluster that trials have left behind, given back.

A trial that is ended while its workers start may leave their placement group: Ray Train (2.60) names the group to what cleans up after it
only once they have started. Nobody else can run anything there, so that the trials after it wait, and on a cluster that stays other jobs.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

_EVERY_S = 20.0
_LOOKS = 3
"""In succession in which nothing runs in a group: workers are put into theirs within a second or two of its making."""


@contextmanager
def given_back(*, every_s: float = _EVERY_S) -> Iterator[None]:
    """Give back, while the block lasts, this job's groups of processors in which nothing runs, and at its end all that are left.

    Args:
        every_s: seconds between looks.
    """
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(ended, every_s), name="leftovers", daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join(every_s)
        with suppress(ray.exceptions.RayError, ConnectionError):
            _remove(_groups())


def _watch(ended: threading.Event, every_s: float) -> None:
    idle = Counter[str]()
    while not ended.wait(every_s):
        with suppress(ray.exceptions.RayError, ConnectionError):
            found = _idle()
            idle = Counter({group: idle[group] + 1 for group in found})
            _remove({group for group, looks in idle.items() if looks >= _LOOKS})


def _groups() -> set[str]:
    """Return the ids of this job's placement groups that hold, or wait for, processors; the places of the trials themselves do neither."""
    job = ray.get_runtime_context().get_job_id()  # with which the ids of what belongs to it end
    return {
        group
        for group, said in ray.util.placement_group_table().items()
        if group.endswith(job) and said["state"] != "REMOVED" and any({"CPU", "GPU"} & bundle.keys() for bundle in said["bundles"].values())
    }


def _idle() -> set[str]:
    """Return those of which all is free; those that wait still have nothing."""
    free, whole = ray.available_resources(), ray.cluster_resources()
    of_group = {group: [name for name in whole if name.endswith(group)] for group in _groups()}
    return {group for group, names in of_group.items() if names and all(free.get(name) == whole[name] for name in names)}


def _remove(groups: set[str]) -> None:
    for group in groups:
        logger.info("placement group %s was left by a trial; it is given back", group)
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))
