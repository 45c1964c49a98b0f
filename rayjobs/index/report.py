"""`rayjobs index report`: recall, bytes, latency and throughput of each kind of index on the index's own vectors."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayjobs.errors import ConfigError
from rayjobs.index.comparison import AT, Measured, Vectors, measured
from rayjobs.index.picture import drawn
from rayjobs.index.versions import Published, name_of, newest
from rayjobs.retrieval.choice import kinds_for
from rayjobs.retrieval.kinds import KINDS, sample_rows
from rayjobs.retrieval.segments import load_segment

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rayjobs.console import Console
    from rayjobs.experiment import Experiment
    from rayjobs.retrieval.manifest import SegmentEntry
    from rayjobs.storage import Version

DESCRIPTION = """Build every kind of index on a sample of the current index's own vectors, and measure what each finds and costs.

How hard each tries is chosen for index.recall on some queries, and measured on others, on one thread. A larger index is slower, and has
to try harder to find as much: compare the kinds with each other, or ask for more --rows. The table and its picture are published beside
the index."""

_SEGMENTS = 4
"""Segments that the sample is drawn from, if they have as many vectors."""
_LEAST_ROWS = 100
_QUERIES = 500
_COLUMNS = {
    "kind": "kind",
    "recall": f"recall@{AT}",
    "bytes_per_vector": "bytes/vector",
    "mapped_bytes_per_vector": "mapped bytes/vector",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "queries_per_second": "queries/s",
    "build_s": "build s",
    "effort": "effort",
}
_FORMAT = 1
"""Raised when the same index would give another report."""


class _Sample(NamedTuple):
    """Vectors of an index, no row twice."""

    vectors: Vectors
    tuning: Vectors
    queries: Vectors
    segments: int
    """That they were drawn from."""


def add_options(made: argparse.ArgumentParser) -> None:
    """Take the size of the sample and the kinds."""
    made.add_argument("--rows", type=int, default=50_000, help="vectors that each kind is built of (50,000)")
    made.add_argument("--queries", type=int, help="vectors that are searched for (500, or a tenth), and as many to choose the effort on")
    made.add_argument("--kinds", nargs="+", choices=list(KINDS), help="default: all that the vectors can be kept in")


def preview(experiment: Experiment, options: argparse.Namespace) -> dict[str, Any]:
    """Return what will be measured on how much."""
    published = newest(experiment.open_workspace().index)
    size = _size(options, published)
    segment = published.manifest.dimension * 4 * size.rows
    kinds = _kinds(options, published)
    return {
        "index_version": published.version.version,
        "kinds": kinds,
        "rows": size.rows,
        "queries": size.queries,
        "memory_bytes": 4 * segment,
        "disk_bytes": segment,
    }


def run(experiment: Experiment, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure the kinds, show the table and publish it; what was measured before is shown again."""
    workspace, recall = experiment.open_workspace(), experiment.index.recall
    workspace.store.check()
    published = newest(workspace.index)
    size = _size(options, published)
    kinds = _kinds(options, published)
    name = name_of("report", _FORMAT, published.version.version, *size, recall, *kinds)
    draft = workspace.index_report.draft(name)
    version = workspace.index_report.current()
    if version is None or version.version != name:
        report = _measured(published, size, kinds, recall, console)
        title = f"{report['index']}: {report['rows']:,} of {report['stored']:,} vectors of {report['dimension']} numbers"
        found = [Measured(**entry) for entry in report["kinds"]]
        draft.write("report.json", json.dumps(report, indent=1).encode())
        draft.write("report.md", _page(report, title, found).encode())
        draft.write("report.png", drawn(found, title=title, wanted=recall))
        version = draft.publish({"parents": {"index": published.version.version}, "counts": {"kinds": len(found)}})
    return _shown(version, options, console)


def _shown(version: Version, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    report = json.loads(version.read("report.json"))
    files = {name: version.store.address(version.key(name)) for name in ("report.md", "report.png", "report.json")}
    if options.json:
        return {**report, "files": files}
    for line in table([Measured(**entry) for entry in report["kinds"]]):
        console.result(line)
    return {"sample": report["sample"], "files": files}


class _Size(NamedTuple):
    """Of the sample: vectors that are searched in, and that are searched for."""

    rows: int
    queries: int


def _size(options: argparse.Namespace, published: Published) -> _Size:
    """Return the size of the sample that the options ask for.

    Raises:
        ConfigError: it tells nothing, or the index does not have as many.
    """
    stored = published.manifest.stored
    queries = min(_QUERIES, stored // 10) if options.queries is None else options.queries
    if queries < 1 or options.rows < _LEAST_ROWS:
        raise ConfigError(f"--rows {options.rows} --queries {queries}: measure on {_LEAST_ROWS} rows and 1 query or more")
    if stored - 2 * queries < _LEAST_ROWS:
        raise ConfigError(f"--queries {queries}: of {stored:,} vectors too few would be left to search in; ask for fewer queries")
    return _Size(min(options.rows, stored - 2 * queries), queries)


def _kinds(options: argparse.Namespace, published: Published) -> list[str]:
    """Return the kinds that the options ask for.

    Raises:
        ConfigError: one that keeps codes, where the encoder gives none.
    """
    able = kinds_for(codes=published.spec.gives_codes)
    wanted: list[str] = options.kinds or able
    if unable := [kind for kind in wanted if kind not in able]:
        raise ConfigError(f"--kinds {' '.join(unable)}: the vectors of this index are no codes; choose from {', '.join(able)}")
    return wanted


def _measured(published: Published, size: _Size, kinds: Sequence[str], recall: float, console: Console) -> dict[str, Any]:
    sample = _drawn_from(published, size)
    manifest = published.manifest
    said = (
        f"{len(sample.vectors):,} of {manifest.stored:,} vectors, drawn from {sample.segments} of {len(manifest.segments)} segments; "
        f"{len(sample.queries):,} other ones are searched for"
    )
    console.say(f"index/report     {said}")
    found: list[Measured] = []
    with console.stage("index/report", len(kinds), "kinds") as stage:
        for kind in kinds:
            with tempfile.TemporaryDirectory(prefix="rayjobs-") as folder:
                found.append(measured(kind, *sample[:3], recall=recall, folder=Path(folder)))
            stage.advance(1, kind=kind)
    return {
        "index": published.version.manifest["name"],
        "index_version": published.version.version,
        "encoder_fingerprint": manifest.encoder_fingerprint,
        "sample": said,
        "rows": len(sample.vectors),
        "stored": manifest.stored,
        "queries": len(sample.queries),
        "dimension": manifest.dimension,
        "wanted_recall": recall,
        "kinds": [dataclasses.asdict(entry) for entry in found],
    }


def _drawn_from(published: Published, size: _Size) -> _Sample:
    """Draw vectors evenly from some segments, and divide them into those searched in and those searched for."""
    manifest, queries, wanted = published.manifest, size.queries, size.rows + 2 * size.queries
    entries = _spread(manifest.segments, wanted)
    there = sum(entry.rows for entry in entries)
    with tempfile.TemporaryDirectory(prefix="rayjobs-") as cache:
        pieces = [
            load_segment(published.version, entry, manifest, Path(cache)).vectors_of(
                sample_rows(entry.rows, -(-wanted * entry.rows // there))
            )
            for entry in entries
        ]
    vectors = np.random.default_rng(0).permutation(np.concatenate(pieces))[:wanted]
    return _Sample(vectors[2 * queries :], vectors[:queries], vectors[queries : 2 * queries], len(entries))


def _spread(segments: Sequence[SegmentEntry], rows: int) -> list[SegmentEntry]:
    """Return a few segments from all over the index that have as many rows together."""
    for count in range(min(_SEGMENTS, len(segments)), len(segments)):
        numbers = np.linspace(0, len(segments) - 1, count).round().astype(int)
        if sum(segments[number].rows for number in numbers) >= rows:
            return [segments[number] for number in numbers]
    return list(segments)


def table(found: Sequence[Measured]) -> list[str]:
    """Return the kinds as a table for people, a line each."""
    rows = [list(_COLUMNS.values()), *([_cell(entry, name) for name in _COLUMNS] for entry in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cell(entry: Measured, name: str) -> str:
    value = getattr(entry, name)
    if isinstance(value, dict):
        return " ".join(f"{key} {number}" for key, number in value.items()) or "-"
    if isinstance(value, float):
        three = f"{value:,.3g}" if value < 100 else f"{value:,.0f}"  # noqa: PLR2004  digits
        return f"{value:.3f}" if name == "recall" else three
    return str(value)


def _page(report: dict[str, Any], title: str, found: Sequence[Measured]) -> str:
    rows = [list(_COLUMNS.values()), ["---"] * len(_COLUMNS), *([_cell(entry, name) for name in _COLUMNS] for entry in found)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    said = f"Index version {report['index_version']}. {report['sample']}."
    how = f"Effort chosen for a recall of {report['wanted_recall']:g}; one thread."
    return "\n".join([f"# {title}", "", said, how, "", *lines, "", "![what compression costs](report.png)", ""])
