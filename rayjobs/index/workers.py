"""Where the work of an index is done: on a Ray cluster, or in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import ray
import ray.data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Row = dict[str, Any]


class Workers(Protocol):
    """What runs functions elsewhere. What they take and return must pickle."""

    def map(self, function: Callable[[Mapping[str, Any]], Row], rows: Sequence[Row]) -> Iterator[Row]:
        """Yield what a function returns for each row, in any order. Rows hold names and numbers."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function returns."""


class OnRay:
    """Each row is a task, wherever there is a CPU."""

    def __init__(self, *, gpu: bool) -> None:
        """Say whether the work that can use a GPU asks for one."""
        self._gpu = gpu

    def map(self, function: Callable[[Mapping[str, Any]], Row], rows: Sequence[Row]) -> Iterator[Row]:
        """Run one task per row, as many at once as there are CPUs."""
        yield from ray.data.from_items(list(rows), override_num_blocks=len(rows)).map(function, num_cpus=1).iter_rows()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run one task, with a GPU where there are such."""
        return ray.get(ray.remote(num_cpus=1, num_gpus=1 if self._gpu else 0)(function).remote(*arguments))


class Here:
    """Everything in this process, one after the other."""

    def map(self, function: Callable[[Mapping[str, Any]], Row], rows: Sequence[Row]) -> Iterator[Row]:
        """Call the function for each row."""
        return map(function, rows)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the function."""
        return function(*arguments)
