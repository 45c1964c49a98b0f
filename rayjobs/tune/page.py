"""A sweep as one page of HTML that needs nothing else: which values find best, what matters, and how the trials learned."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rayjobs.evaluate.page import tables
from rayjobs.evaluate.page.document import document, picture
from rayjobs.evaluate.page.markup import Html, element, joined
from rayjobs.tune.pictures import best_so_far, curves, importance_chart, parallel

if TYPE_CHECKING:
    from collections.abc import Mapping

    Json = Mapping[str, Any]


def page(report: Json, experiment: str) -> str:
    """Return the page.

    Args:
        report: as `sweep.json` holds it, see `rayjobs.tune.report`.
        experiment: the resolved experiment file, YAML.
    """
    measured = [trial for trial in report["trials"] if trial["value"] is not None]
    objective = report["objective"]
    parts = [
        ("The best values, measured on ground that nothing was chosen on", _finals(report)),
        (
            "Values and what they find",
            picture(
                "parallel",
                parallel(measured, objective, report["best"]),
                "Each line is a trial; the brighter, the better it finds. Dashed: ended early.",
            )
            if measured
            else Html(),
        ),
        ("What matters", _importance(report)),
        (
            "How the trials learned",
            joined(
                picture("curves", curves(measured, objective, report["best"]), f"{objective} on the validation split, epoch by epoch."),
                picture("best", best_so_far(measured, objective), "The best so far, trial by trial in the order in which they are listed."),
            )
            if measured
            else Html(),
        ),
        ("Trials", _trials(report)),
        ("Experiment", element("details", element("summary", "The resolved experiment file"), element("pre", element("code", experiment)))),
    ]
    return document(f"{report['sweep']}: what was tried", [_summary(report)], parts)


def _summary(report: Json) -> Html:
    best = next(trial for trial in report["trials"] if trial["run"] == report["best"])
    counts = ", ".join(f"{count} {ended}" for ended, count in report["counts"].items())
    told = f": {report['objective']} {best['value']:.4f} on the validation split, with {values_text(best)}"
    chosen = (
        "Choices are made by that figure alone, and it flatters the best of many; what the best values are worth is measured apart, below."
    )
    return joined(
        element("p", element("strong", best["run"], class_="ours"), told),
        element("p", f"{len(report['trials'])} trials: {counts}. {chosen}", class_="soft"),
    )


def values_text(trial: Json) -> str:
    """Return a trial's values on one line."""
    return ", ".join(f"{key} {_text(value)}" for key, value in trial["values"].items())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _finals(report: Json) -> Html:
    finals, objective = report["finals"], report["objective"]
    if not finals:
        return element("p", "The best values were not trained anew (tune.final_seeds: 0).")
    others = list(finals[0]["differences"])
    rows = [
        element(
            "tr",
            element("th", final["run"], scope="row"),
            element("td", tables.figure(final["metrics"][objective])),
            *(element("td", tables.figure(final["differences"][other], signed=True)) for other in others),
        )
        for final in finals
    ]
    final, protocol = report["final"], finals[0]["protocol"]
    told = (
        f"{objective} on {report['split']}: {final['mean']:.4f}, the mean of {final['seeds']} seeds ({final['least']:.4f} to "
        f"{final['greatest']:.4f}). {protocol['queries']} queries, gallery of {protocol['gallery']} tiles; "
        f"intervals: {protocol['interval']}."
    )
    return joined(element("p", told), tables.table(["run", objective, *(f"minus {other}" for other in others)], rows))


def _importance(report: Json) -> Html:
    found = report["importance"]
    if not found:
        return element("p", "Too few trials came to their end to tell.")
    caption = "Share of each key in what a random forest tells of the objective (permutation importance), of these trials alone."
    return picture("importance", importance_chart(found), caption)


def _trials(report: Json) -> Html:
    keys = list(dict.fromkeys(key for trial in report["trials"] for key in trial["values"]))
    ranked = sorted(report["trials"], key=lambda trial: (trial["ended"] != "finished", -(trial["value"] or 0.0)))
    rows = [
        element(
            "tr",
            element("th", trial["run"], scope="row"),
            element("td", tables.number(trial["value"])),
            *(element("td", _text(trial["values"][key]) if key in trial["values"] else "") for key in keys),
            element("td", str(trial["history"][-1][0]) if trial["history"] else "0"),
            element("td", trial["ended"], f": {trial['failure']}" if trial["failure"] else ""),
            class_="ours" if trial["run"] == report["best"] else None,
        )
        for trial in ranked
    ]
    return tables.table(["run", report["objective"], *keys, "epochs", "ended"], rows)
