"""What `report.json` says, as plain values of JSON. A number that is not known is null, never NaN.

`rows`         a list, in the order of the table:
               `name`; `metrics` {metric: {value, low, high}}, means over tiles with their 95 % intervals over units;
               `without_interval` {metric: value or null}, figures of the whole embedding: silhouette, cophenetic_correlation.
`objective`    the metric that counts.
`differences`  {row: {value, low, high}}: trained minus that row in the objective, paired by tile.
`without`      null where all classes were asked for; else `classes`, those left out (`evaluate.without_classes`): their tiles neither ask
               nor are found; `queries`; `gallery`; `rows` {row: {metric of retrieval: {value, low, high}}}; `differences` as above, empty
               where the objective is no metric of retrieval.
`distances`    null where tiles lie nowhere; else `random_pairs`, the mean distance of random pairs of tiles, kilometres, and `rows`
               {row: {distance_km@k: {value, low, high}}}: how far from its query what is found lies, along great circles.
`ranks`        {row: list}: the precision at rank 1, 2, ... up to `evaluate.ranks`: of all tiles that are found up to there, the share that
               is relevant, over all queries. Empty where none was asked for.
`probes`       a list: `row`; `probe` (knn, ...); `target` (classes, proportions); `split` (ground, random); `splits`, how many;
               `test_ratio`, tested over trained tiles; `metrics` {metric: {value, low, high}}, means over the splits; `trained_minus`
               likewise, the trained row minus this one on the same splits, null in the trained row itself.
`classes`      {row: list}, one entry for each class: `class`; `tiles`; `queries`, those of them that have something to find; `metrics`
               {MAP@R and the objective: {value, low, high}, null where no tile of the class is measured}; `probe` {tested, precision,
               recall, f1} or null: of `confusion`'s probe. Empty where tiles have no classes.
`confusion`    null where no probe of classes was measured; else `probe`; `split`; `classes`, names; `rows` {row: counts, one list for each
               true class, by predicted class}, summed over the splits.
`segmentation` null where no probe of pixels was asked for; else `rows`, a list: `name` (with `majority-class`, which predicts the most
               frequent class everywhere); `metrics` {mIoU, pixel accuracy: {value, low, high}}; `trained_minus` likewise, null in the
               trained row; `iou` {class: value or null}; `penalty` of the probe or null; and its own `protocol`.
`dates`        {row: list} of retrieval across dates, one entry for each pair of dates: see `rayjobs.evaluate.dates`; else empty.
`protocol`     queries, gallery, relevance, exclusion, units, splits, seeds, and `cautions`: what keeps the figures from saying much.

Intervals of a single unit or a single split have no ends: null.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs.evaluate.dates import by_dates
from rayjobs.evaluate.distances import by_chance_km
from rayjobs.retrieval.intervals import Interval, bootstrap_interval, paired_difference, resampled_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayjobs.evaluate.measure import Measured, Probed, TileValues
    from rayjobs.evaluate.relevance import Question
    from rayjobs.evaluate.section import EvaluateSection
    from rayjobs.retrieval.classes import ClassTable
    from rayjobs.retrieval.ranking import IntArray

Json = dict[str, Any]

PER_CLASS = "MAP@R"
"""The metric of the table by class, beside the objective."""

_MANY_LONE = 0.1
"""Share of queries without anything to find that is worth a caution."""
_FEW_UNITS = 10
_REMEDIES = {
    "spatial blocks": "take more imagery, or smaller tiles.splits.block_m",
    "scenes": "take more scenes",
    "places": "take more places",
    "source observations": "take more observations",
    "dates": "take more dates, or tiles.splits.by: block",
    "classes": "measure more classes",
}


def table(measured: Sequence[Measured], settings: EvaluateSection, *, ours: str, segmentation: Json | None = None) -> Json:
    """Return the whole report but its protocol.

    Args:
        measured: the rows, all of one question and plan.
        settings: the experiment's evaluate section.
        ours: name of the row that the others are subtracted from.
        segmentation: what the probe of single pixels found, where it was asked for.
    """
    trained = next(row for row in measured if row.name == ours)
    others = [row for row in measured if row is not trained]
    return {
        "rows": [_row(row, settings) for row in measured],
        "objective": settings.objective,
        "differences": {
            row.name: _difference(trained, trained.metrics[settings.objective], row.metrics[settings.objective], settings) for row in others
        },
        "without": _without(trained, measured, settings),
        "distances": _distances(measured, settings),
        "ranks": {row.name: [round(float(value), 6) for value in row.ranks] for row in measured if len(row.ranks)},
        "probes": [entry for row in measured for entry in _probes(row, None if row is trained else trained)],
        "classes": {row.name: _by_class(row, settings) for row in measured} if measured[0].question.classes else {},
        "confusion": _confusion(measured),
        "segmentation": segmentation,
        "dates": {row.name: by_dates(row, settings) for row in measured} if measured[0].question.dates else {},
    }


def cautions(ks: Sequence[int], gallery: int, units: int, unit_means: str) -> list[str]:
    """Return what keeps the figures from saying much."""
    deep = [k for k in ks if k >= gallery]
    few = f"only {units} independent units ({unit_means}): the intervals are unsure themselves; {_REMEDIES[unit_means]}"
    whole = f"the gallery has {gallery} tiles, so what is measured at {deep} finds everything, whatever the encoder; lower evaluate.ks"
    return [*([few] if units < _FEW_UNITS else []), *([whole] if deep else [])]


def cautions_of_lone(question: Question, asking: IntArray) -> list[str]:
    """Return whom the figures leave out, where that is many: queries with nothing to find, and classes none of whose tiles ask.

    Args:
        question: what is asked.
        asking: tiles that are measured.
    """
    lone = len(question.queries) - len(asking)
    codes = question.codes[asking]
    silent = [name for code, name in enumerate(question.classes) if not (codes == code).any()]
    if lone < _MANY_LONE * len(question.queries) and not silent:
        return []
    classes = f", among them all of {'class' if len(silent) == 1 else 'the classes'} {', '.join(silent)}" if silent else ""
    unmeasured = f"{lone} of {len(question.queries)} queries have nothing to find and are not measured"
    return [f"{unmeasured}{classes}: the figures are of the others alone"]


def _row(row: Measured, settings: EvaluateSection) -> Json:
    return {
        "name": row.name,
        "metrics": {name: _entry(_bootstrap(row, found, settings)) for name, found in row.metrics.items()},
        "without_interval": {name: _known(value) for name, value in row.figures.items()},
    }


def _bootstrap(row: Measured, found: TileValues, settings: EvaluateSection) -> Interval:
    return bootstrap_interval(found.values, row.question.units[found.tiles], resamples=settings.resamples, seed=settings.seed)


def _difference(trained: Measured, mine: TileValues, theirs: TileValues, settings: EvaluateSection) -> Json:
    if not np.array_equal(mine.queries, theirs.queries):
        raise AssertionError("rows are measured at different tiles")  # a fault of ours: they could not be compared
    units = trained.question.units[mine.tiles]
    return _entry(paired_difference(mine.values, theirs.values, units, resamples=settings.resamples, seed=settings.seed))


def _without(trained: Measured, measured: Sequence[Measured], settings: EvaluateSection) -> Json | None:
    if not trained.reduced:
        return None
    codes, objective = trained.question.codes, settings.objective
    dropped = [code for code, name in enumerate(trained.question.classes) if name in settings.without_classes]
    return {
        "classes": [trained.question.classes[code] for code in dropped],
        "queries": len(trained.reduced[PER_CLASS].tiles),
        "gallery": int((~np.isin(codes, dropped)).sum()),
        "rows": {row.name: {name: _entry(_bootstrap(row, found, settings)) for name, found in row.reduced.items()} for row in measured},
        "differences": {
            row.name: _difference(trained, trained.reduced[objective], row.reduced[objective], settings)
            for row in measured
            if row is not trained and objective in row.reduced
        },
    }


def _distances(measured: Sequence[Measured], settings: EvaluateSection) -> Json | None:
    if not measured[0].distances:
        return None
    return {
        "random_pairs": by_chance_km(measured[0].question, seed=settings.seed),
        "rows": {row.name: {name: _entry(_bootstrap(row, found, settings)) for name, found in row.distances.items()} for row in measured},
    }


def _probes(row: Measured, trained: Measured | None) -> list[Json]:
    return [
        {
            "row": row.name,
            "probe": probed.kind,
            "target": probed.division.target,
            "split": probed.division.by,
            "splits": len(probed.division.splits),
            "test_ratio": probed.result.test_ratio,
            "metrics": {name: _entry(interval) for name, interval in probed.result.metrics.items()},
            "trained_minus": _probe_differences(trained.probes[place], probed) if trained else None,
        }
        for place, probed in enumerate(row.probes)
    ]


def _probe_differences(mine: Probed, theirs: Probed) -> Json:
    """Return the differences of two embeddings in the metrics of one probe, split by split."""
    ratio = mine.result.test_ratio
    return {name: _entry(resampled_interval(values - theirs.result.values[name], ratio)) for name, values in mine.result.values.items()}


def _by_class(row: Measured, settings: EvaluateSection) -> list[Json]:
    probed, codes = row.class_probe, row.question.codes
    entries = []
    for code, name in enumerate(row.question.classes):
        entries.append(
            {
                "class": name,
                "tiles": int((codes == code).sum()),
                "queries": int((codes[row.metrics[PER_CLASS].tiles] == code).sum()),
                "metrics": {
                    metric: _of_class(row, row.metrics[metric], code, settings) for metric in dict.fromkeys((PER_CLASS, settings.objective))
                },
                "probe": _of_probe(probed.result.table, code) if probed else None,
            }
        )
    return entries


def _of_class(row: Measured, found: TileValues, code: int, settings: EvaluateSection) -> Json | None:
    of_class = row.question.codes[found.tiles] == code
    if not of_class.any():
        return None
    units = row.question.units[found.tiles[of_class]]
    return _entry(bootstrap_interval(found.values[of_class], units, resamples=settings.resamples, seed=settings.seed))


def _of_probe(found: ClassTable | None, code: int) -> Json | None:
    if found is None:
        return None
    return {
        "tested": int(found.support[code]),
        "precision": _known(found.precision[code]),
        "recall": _known(found.recall[code]),
        "f1": _known(found.f1[code]),
    }


def _confusion(measured: Sequence[Measured]) -> Json | None:
    found = {row.name: row.class_probe for row in measured}
    first = next(iter(found.values()))
    if first is None:
        return None
    return {
        "probe": first.kind,
        "split": first.division.by,
        "classes": list(measured[0].question.classes),
        "rows": {name: probed.result.table.confusion.tolist() for name, probed in found.items() if probed and probed.result.table},
    }


def _entry(interval: Interval) -> Json:
    several = interval.units > 1
    return {
        "value": _known(interval.value),
        "low": _known(interval.low) if several else None,
        "high": _known(interval.high) if several else None,
    }


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def shown(report: Mapping[str, Any]) -> list[str]:
    """Return the lines that a person sees: the objective row by row, and a figure of each probe."""
    objective = report["objective"]
    lines = [f"{objective}, with its 95 % interval, and trained minus each row:"]
    for row in report["rows"]:
        gap = report["differences"].get(row["name"])
        lines.append(f"  {row['name']:<18}{_text(row['metrics'][objective])}" + (f"    {_text(gap, signed=True)}" if gap else ""))
    return [
        *lines,
        *_shown_without(report),
        *_shown_distances(report),
        *_shown_probes(report["probes"]),
        *_shown_pixels(report["segmentation"]),
    ]


def _shown_without(report: Mapping[str, Any]) -> list[str]:
    found, objective = report["without"], report["objective"]
    if not found or not found["differences"]:
        return []
    lines = []
    for row, metrics in found["rows"].items():
        gap = found["differences"].get(row)
        lines.append(f"  {row:<18}{_text(metrics[objective])}" + (f"    {_text(gap, signed=True)}" if gap else ""))
    return [f"the same without {', '.join(found['classes'])}:", *lines]


def _shown_distances(report: Mapping[str, Any]) -> list[str]:
    found = report["distances"]
    if not found:
        return []
    lines = [
        f"  {row:<18}" + "    ".join(f"{name.rpartition('@')[2]}: {entry['value']:,.1f} km" for name, entry in metrics.items())
        for row, metrics in found["rows"].items()
    ]
    return [f"mean distance of the first k results from their query (of random tiles {found['random_pairs']:,.1f} km):", *lines]


_TOLD = {"classes": "balanced_accuracy", "proportions": "summed_error"}
"""Of each target, the metric of probes that a person sees first."""


def _shown_probes(probes: Sequence[Mapping[str, Any]]) -> list[str]:
    by_probe: dict[tuple[str, str, str], dict[str, str]] = {}
    for entry in probes:
        metric = _TOLD[entry["target"]]
        by_probe.setdefault((entry["probe"], metric, entry["row"]), {})[entry["split"]] = _text(entry["metrics"][metric])
    lines = [
        f"  {row:<18}{probe} {metric:<18}{found.get('ground', 'not measured'):<22}    {found.get('random', 'not measured')}"
        for (probe, metric, row), found in sorted(by_probe.items(), key=lambda item: item[0][:2])
    ]
    return ["probes on splits by ground, and on random splits, which flatter:", *lines] if lines else []


def _shown_pixels(segmentation: Json | None) -> list[str]:
    if segmentation is None:
        return []
    rows = [
        f"  {row['name']:<18}" + "    ".join(f"{metric} {_text(entry)}" for metric, entry in row["metrics"].items())
        for row in segmentation["rows"]
    ]
    return ["a linear probe of single pixels:", *rows]


def _text(entry: Mapping[str, float | None], *, signed: bool = False) -> str:
    """Write a figure and its interval, if it has one."""
    sign = "+" if signed else ""
    value, low, high = (None if entry[key] is None else f"{entry[key]:{sign}.3f}" for key in ("value", "low", "high"))
    return f"{value or '-'} [{low}, {high}]" if low and high else f"{value or '-'}"


def values_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Return every figure that is known by its path: `trained/recall@10`, `trained/knn/ground/accuracy`."""
    figures: dict[str, float | None] = {}
    for row in report["rows"]:
        figures |= {f"{row['name']}/{metric}": entry["value"] for metric, entry in row["metrics"].items()}
        figures |= {f"{row['name']}/{metric}": value for metric, value in row["without_interval"].items()}
    for part, found in (("without/", report["without"]), ("", report["distances"])):
        for row, metrics in (found or {"rows": {}})["rows"].items():
            figures |= {f"{row}/{part}{metric}": entry["value"] for metric, entry in metrics.items()}
    for probe in report["probes"]:
        place = f"{probe['row']}/{probe['probe']}/{probe['split']}"
        figures |= {f"{place}/{metric}": entry["value"] for metric, entry in probe["metrics"].items()}
    for row in (report["segmentation"] or {"rows": []})["rows"]:
        figures |= {f"{row['name']}/segmentation/{metric}": entry["value"] for metric, entry in row["metrics"].items()}
    return {name: value for name, value in figures.items() if value is not None}
