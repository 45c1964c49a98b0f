"""What people are told of requests that failed: how many for which reason, where each is named, and what may help."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rayjobs.errors import first_few
from rayjobs.rasters.web import NOT_ASKED, is_refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rayjobs.fetch.plan import FetchScene

_SHOWN = 3
"""Reasons, each with one request that failed for it."""
_EMPTY = frozenset({404, 410})
"""Statuses by which some services say that a tile holds no data."""


def told_missing(missing: Sequence[Mapping[str, Any]], scenes: Sequence[FetchScene], table: str) -> Iterator[str]:
    """Yield lines on the requests that failed.

    Args:
        missing: of each failed request `scene_id`, `url`, `status`, `at` and `reason`.
        scenes: of the plan.
        table: address of the table of all requests.
    """
    yield f"{len(missing):,} requests failed; {table} names each (`outcome` is `failed`), and so does --json"
    reasons = sorted(_by_reason(missing).values(), key=len, reverse=True)
    for rows in reasons[:_SHOWN]:
        yield f"{len(rows):,} requests: {rows[0]['reason']}; such as {rows[0]['url']} at {rows[0]['at']}"
    if reasons[_SHOWN:]:
        yield f"{sum(map(len, reasons[_SHOWN:])):,} requests for {len(reasons) - _SHOWN:,} more reasons"
    asked = [row for row in missing if row["reason"] != NOT_ASKED]
    refused = [row for row in asked if is_refusal(row["status"])]
    if refused:
        yield from _of_refusals(refused, scenes)
    if len(refused) < len(asked) or not asked:
        them = "those not refused" if refused else "them"
        yield f"the same command asks for {them} again, and for nothing that is there"


def told_unlisted(scenes: Sequence[str]) -> str:
    """Return what to say of scenes whose date the service does not list."""
    return (
        f"the service does not list the dates of {len(scenes):,} scenes ({first_few(scenes)}), and may have nothing of them; "
        "they are asked for all the same, since a list may leave early dates out"
    )


def _by_reason(missing: Sequence[Mapping[str, Any]]) -> dict[tuple[int | None, str], list[Mapping[str, Any]]]:
    """Group requests by status and reason, without the details that differ from one to the next."""
    groups: dict[tuple[int | None, str], list[Mapping[str, Any]]] = {}
    for row in missing:
        groups.setdefault((row["status"], re.split("[:;]", row["reason"], maxsplit=1)[0]), []).append(row)
    return groups


def _of_refusals(refused: Sequence[Mapping[str, Any]], scenes: Sequence[FetchScene]) -> Iterator[str]:
    """Yield what may help where the service answered that it will not, or cannot, send a tile."""
    among = {row["scene_id"] for row in refused}
    unlisted = [scene.scene_id for scene in scenes if scene.scene_id in among and not scene.listed]
    if unlisted:
        yield told_unlisted(unlisted)
    yield (
        f"the service refused {len(refused):,} requests: the same command asks again, and will hardly be answered otherwise; "
        "see whether the layer has this date and area, and whether you may have it"
    )
    if any(row["status"] in _EMPTY for row in refused):
        yield "where the service means by 404 that a tile holds no data: --fetch.empty_statuses '[204, 404]'"
