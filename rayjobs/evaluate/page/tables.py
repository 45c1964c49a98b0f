"""The report's figures as tables of HTML: every number that stands in `report.json` stands in one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayjobs.evaluate.page.markup import Html, element, joined

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Json = Mapping[str, Any]

_NONE = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_WIDE = 200
_EDGE = 6
"""Of the drawing of an interval, in its own unit."""


def headline(report: Json, ours: str) -> Html:
    """Return the objective, row by row, with its interval, and the difference of our row to each other."""
    objective, gaps = report["objective"], report["differences"]
    entries = {row["name"]: row["metrics"][objective] for row in report["rows"]}
    scale = _scale(entries.values())
    body = [
        _row(name, [figure(entry), _whisker(entry, scale), figure(gaps.get(name), signed=True), verdict(gaps.get(name))], ours=name == ours)
        for name, entry in entries.items()
    ]
    head = ["row", objective, f"from {scale[0]:.2g} to {scale[1]:.2g}", f"{ours} minus row", f"{ours} is"]
    return table(head, body)


def metrics(report: Json, ours: str) -> Html:
    """Return all metrics, one column for each row of the report."""
    rows = report["rows"]
    names = dict.fromkeys(name for row in rows for name in row["metrics"])
    plain = dict.fromkeys(name for row in rows for name in row.get("without_interval", {}))
    body = [_row(_chosen(name, report["objective"]), [figure(row["metrics"].get(name)) for row in rows]) for name in names]
    body += [_row(name, [number(row["without_interval"].get(name)) for row in rows]) for name in plain]
    return table(["metric", *(_ours(row["name"], ours) for row in rows)], body)


def without(report: Json, ours: str) -> Html:
    """Return every metric of retrieval row by row, with all classes and without some, and the differences in the objective."""
    found, gaps = report["without"], report["without"]["differences"]
    full = {row["name"]: row["metrics"] for row in report["rows"]}
    body = [
        _row(f"{name}, {row}", [figure(full.get(row, {}).get(name)), figure(entry)], ours=row == ours)
        for name in dict.fromkeys(name for metrics in found["rows"].values() for name in metrics)
        for row, entry in ((row, metrics[name]) for row, metrics in found["rows"].items())
    ]
    gap_rows = [
        _row(f"{ours} minus {row}, {report['objective']}", [figure(report["differences"].get(row), signed=True), figure(gap, signed=True)])
        for row, gap in gaps.items()
    ]
    return table(["metric and row", "all classes", f"without {', '.join(found['classes'])}"], [*gap_rows, *body])


def distances(found: Json, ours: str) -> Html:
    """Return the mean distances, row by row."""
    names = list(next(iter(found["rows"].values())))
    body = [_row(row, [figure(metrics[name]) for name in names], ours=row == ours) for row, metrics in found["rows"].items()]
    return table(["row", *names], body)


def probes(report: Json, ours: str) -> list[tuple[str, Html]]:
    """Return one table for each target and metric of the probes, with its heading: ground and random splits side by side."""
    found: dict[tuple[str, str], dict[tuple[str, str], dict[str, Json]]] = {}
    for entry in report.get("probes") or ():
        for name in entry["metrics"]:
            found.setdefault((entry["target"], name), {}).setdefault((entry["probe"], entry["row"]), {})[entry["split"]] = entry
    return [(f"{name} of {target}", _probe_table(name, of_metric, ours)) for (target, name), of_metric in found.items()]


def _probe_table(name: str, found: Mapping[tuple[str, str], Mapping[str, Json]], ours: str) -> Html:
    body = []
    for (probe, row), by_split in sorted(found.items(), key=lambda item: item[0][0]):
        ground, random = (by_split[split]["metrics"].get(name) if split in by_split else None for split in ("ground", "random"))
        minus = (by_split[split].get("trained_minus") or {} if split in by_split else {} for split in ("ground", "random"))
        gaps = [figure(gap.get(name), signed=True) for gap in minus]
        body.append(_row(row, [probe, figure(ground), figure(random), number(_gap(random, ground), signed=True), *gaps], ours=row == ours))
    head = [
        "row",
        "probe",
        "split by ground",
        "random split",
        "random minus ground",
        f"{ours} minus row, ground",
        f"{ours} minus row, random",
    ]
    return table(head, body)


def segmentation(found: Json, ours: str) -> Html:
    """Return the probe of single pixels, row by row: metrics, differences, and the IoU of each class."""
    rows = found["rows"]
    names, held = list(rows[0]["metrics"]), list(rows[0]["iou"])
    body = [
        _row(
            row["name"],
            [
                *(figure(row["metrics"][name]) for name in names),
                *(figure((row["trained_minus"] or {}).get(name), signed=True) for name in names),
                number(row["penalty"]),
                *(number(row["iou"][name]) for name in held),
            ],
            ours=row["name"] == ours,
        )
        for row in rows
    ]
    return table(["row", *names, *(f"{ours} minus row, {name}" for name in names), "penalty", *(f"IoU, {name}" for name in held)], body)


def classes(entries: Sequence[Json]) -> Html:
    """Return one row's table of classes."""
    names = list(dict.fromkeys(name for entry in entries for name in entry["metrics"]))
    probe = list(dict.fromkeys(name for entry in entries for name in entry.get("probe") or ()))
    body = [
        _row(
            entry["class"],
            [
                f"{entry['tiles']:,}",
                f"{entry['queries']:,}",
                *(figure(entry["metrics"].get(name)) for name in names),
                *(number((entry.get("probe") or {}).get(name)) for name in probe),
            ],
        )
        for entry in entries
    ]
    return table(["class", "tiles", "queries", *names, *(f"{name} (probe)" for name in probe)], body)


def dates(entries: Sequence[Json]) -> Html:
    """Return one row's table of pairs of dates."""
    names = list(entries[0]["metrics"])
    body = [
        _row(
            entry["asking"],
            [
                entry["asked"],
                f"{entry['gap_days']:,}",
                f"{entry['queries']:,}",
                f"{entry['gallery']:,}",
                number(entry["median_rank"]),
                *(figure(entry["metrics"][name]) for name in names),
            ],
        )
        for entry in entries
    ]
    return table(["asking", "asked", "days", "queries", "gallery", "median rank", *names], body)


def confusion(found: Json, row: str) -> Html:
    """Return one row's confusion matrix."""
    names = found["classes"]
    body = [_row(name, list(counts)) for name, counts in zip(names, found["rows"][row], strict=True)]
    return table(["true \\ predicted", *names], body)


def table(head: Sequence[object], body: Sequence[Html]) -> Html:
    """Return a table that scrolls sideways where it does not fit."""
    heading = element("tr", *(element("th", cell, scope="col") for cell in head))
    return element("div", element("table", element("thead", heading), element("tbody", *body)), class_="wide", tabindex=0)


def _row(name: object, cells: Sequence[object], *, ours: bool = False) -> Html:
    return element("tr", element("th", name, scope="row"), *(element("td", cell) for cell in cells), class_="ours" if ours else None)


def _chosen(name: str, objective: str) -> object:
    return element("strong", f"{name} (objective)") if name == objective else name


def _ours(name: str, ours: str) -> Html:
    return element("span", name, class_="ours" if name == ours else None)


def number(value: float | None, *, signed: bool = False) -> str:
    """Write a figure with three decimals, whole numbers as they are."""
    if value is None:
        return _NONE
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:{'+' if signed else ''}.3f}".replace("-", _MINUS)


def figure(entry: Json | None, *, signed: bool = False) -> Html:
    """Write a figure and its interval, if it has one."""
    if entry is None or entry["value"] is None:
        return joined(_NONE)
    value, low, high = (number(entry.get(key), signed=signed) for key in ("value", "low", "high"))
    if entry.get("low") is None or entry.get("high") is None:
        return joined(value)
    return joined(value, " ", element("span", f"[{low}, {high}]", class_="soft"))


def verdict(gap: Json | None) -> str:
    """Say in words what the interval of a difference allows to say."""
    if gap is None or gap["value"] is None:
        return ""
    if gap["low"] is None or gap["high"] is None:
        return "not known: a single unit"
    if gap["low"] > 0:
        return "higher"
    return "lower" if gap["high"] < 0 else "not told apart"


def _gap(one: Json | None, other: Json | None) -> float | None:
    if one is None or other is None or one["value"] is None or other["value"] is None:
        return None
    return float(one["value"] - other["value"])


def _scale(entries: Iterable[Json]) -> tuple[float, float]:
    """Return the least and greatest number of the entries."""
    numbers = [entry[key] for entry in entries for key in ("value", "low", "high") if entry.get(key) is not None]
    return (min(numbers), max(numbers)) if numbers else (0.0, 1.0)


def _whisker(entry: Json, scale: tuple[float, float]) -> Html:
    """Draw a dot and its interval; beside the numbers, so that a reader of the screen aloud may pass over it."""
    if entry["value"] is None:
        return Html()
    low, high = (entry["value"] if entry.get(key) is None else entry[key] for key in ("low", "high"))
    left, right, dot = (
        f"{_EDGE + (_WIDE - 2 * _EDGE) * (at - scale[0]) / ((scale[1] - scale[0]) or 1):.1f}" for at in (low, high, entry["value"])
    )
    rule = element("line", x1=0, x2=_WIDE, y1=12, y2=12, class_="rule")
    whisker = element("line", x1=left, x2=right, y1=12, y2=12)
    return element("svg", rule, whisker, element("circle", cx=dot, cy=12, r=5), viewBox=f"0 0 {_WIDE} 24", aria_hidden="true")
