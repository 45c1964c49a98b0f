"""Random filtered searches of one million vectors against brute force: what is called exact must be, and nothing may fall short.

Vectors as in `benchmarks.search`; tiles all over the globe, at the poles and across the antimeridian too, each kind of thing mostly in a
few regions, so that filters by place and what is searched for have to do with each other. Filters are drawn at random: boxes; stars, some
over the antimeridian (drawn past 180 degrees, or with edges that go the short way); rings round a pole; dates, labels, a column; and
any of these together. The oracle knows nothing of the index: it compares every tile's box with the polygon as it was drawn, on a map that
is laid out three times side by side, and every vector that passes with the query, the best of them once more in float64.

Figures: `wrong_exact`, answers that say `exact` and are not; `short`, answers with too few hits or another number of candidates;
`approximate_share`; `recall` of approximate answers and of the worst hundredth of them; median milliseconds of a core for either kind.
"""

from __future__ import annotations

import datetime
import functools
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from benchmarks import command
from benchmarks.search import DIM, THINGS, made
from rayjobs.geo import BBox
from rayjobs.retrieval.choice import choose, tuned
from rayjobs.retrieval.filters import SearchFilter
from rayjobs.retrieval.kinds import KINDS, Effort, sample_rows, sample_size
from rayjobs.retrieval.manifest import IndexManifest
from rayjobs.retrieval.search import Hits, Searcher
from rayjobs.retrieval.segments import build_segment, load_segment, load_table
from rayjobs.retrieval.shards import LocalShards
from rayjobs.storage import Artefact, Version, open_store

FULL, QUICK = (1_000_000, 10_000), (100_000, 1000)
"""Tiles and queries."""
SHAPES, QUICK_SHAPES = 300, 60
"""Different polygons that filters take turns with: the oracle asks all tiles of each once."""
RECALL = 0.97
SIDE = 0.1
"""Degrees."""
LABELS = 20
BLOCK = 32
EPOCH = datetime.datetime(2015, 1, 1, tzinfo=datetime.UTC)
DAYS = 3650


class World:
    """Tiles, and who passes which filter by comparing all of them."""

    def __init__(self, rows: int) -> None:
        """Draw them."""
        rng = np.random.default_rng(1)
        self.vectors = made(rows, seed=2)
        things = np.argmax(self.vectors[:, :THINGS] @ rng.normal(size=(DIM, 64)).astype(np.float32), axis=1)
        homes = np.column_stack([rng.uniform(-180, 180, 64), np.degrees(np.arcsin(rng.uniform(-1, 1, 64)))])
        away = rng.random(rows) < 0.5
        lon = np.where(away, rng.uniform(-180, 180, rows), homes[things, 0] + rng.normal(0, 12, rows))
        lat = np.where(away, rng.uniform(-90, 90 - SIDE, rows), homes[things, 1] + rng.normal(0, 8, rows))
        self.west, self.south = np.mod(lon + 180, 360) - 180, np.clip(lat, -90, 90 - SIDE)
        self.days = rng.integers(0, DAYS, rows)
        often = 1 / np.arange(1, LABELS + 1)
        self.labels = rng.choice(LABELS, rows, p=often / often.sum())
        self.clouds = rng.integers(0, 10, rows)
        self.boxes = shapely.box(self.west, self.south, self.west + SIDE, self.south + SIDE)

    def table(self) -> pa.Table:
        """Return what an index knows of the tiles."""
        footprints = self.boxes.copy()
        for row in np.flatnonzero(self.west + SIDE > 180):
            west, south, north = self.west[row], self.south[row], self.south[row] + SIDE
            footprints[row] = shapely.MultiPolygon(
                [shapely.box(west, south, 180, north), shapely.box(-180, south, west + SIDE - 360, north)]
            )
        moments = (int(EPOCH.timestamp()) + self.days * 86_400) * 1_000_000
        return pa.table(
            {
                "tile_id": [f"{row:020x}" for row in range(len(self.days))],
                "scene_id": pa.array(np.char.add("scene-", (self.days // 10).astype(str))),
                "geometry": pa.array(shapely.to_wkb(footprints), pa.binary()),
                "datetime": pa.array(moments, pa.timestamp("us", tz="UTC")),
                "label": pa.array(np.char.add("label-", self.labels.astype(str))),
                "cloud": pa.array(self.clouds, pa.int32()),
            }
        )

    def on_ground(self, drawn: Any) -> np.ndarray:
        """Return which tiles meet ground that is drawn on a map which goes on past the antimeridian."""
        west, south, east, north = drawn.bounds
        shapely.prepare(drawn)
        met = np.zeros(len(self.west), bool)
        for turn in (-360, 0, 360):
            if west > 180 + SIDE + turn or east < -180 + turn:
                continue
            near = (self.west + turn <= east) & (self.west + SIDE + turn >= west) & (self.south <= north) & (self.south + SIDE >= south)
            rows = np.flatnonzero(near & ~met)
            moved = self.boxes[rows] if turn == 0 else shapely.transform(self.boxes[rows], lambda points, by=turn: np.add(points, (by, 0)))
            met[rows] = shapely.intersects(drawn, moved)
        return met


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Some ground, as a request says it and as it is drawn on a map without an edge."""

    said: Any
    drawn: Any


def star(rng: np.random.Generator, middle: tuple[float, float], reach: float) -> np.ndarray:
    """Return a ring (k, 2) whose corners lie at random distances round a middle."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(5, 40)))
    distance = reach * rng.uniform(0.4, 1, len(angles))
    points = np.column_stack([middle[0] + 1.5 * distance * np.cos(angles), middle[1] + distance * np.sin(angles)])
    return np.column_stack([points[:, 0], np.clip(points[:, 1], -90, 90)])


def over_the_antimeridian(rng: np.random.Generator) -> Ground:
    """Draw a star over the antimeridian, said with longitudes past 180 degrees, or with edges that go the short way."""
    ring = star(rng, (180 + rng.uniform(-5, 5), rng.uniform(-70, 70)), 10 ** rng.uniform(0.5, 1.6))
    said = ring if rng.random() < 0.5 else np.column_stack([np.mod(ring[:, 0] + 180, 360) - 180, ring[:, 1]])
    return Ground(said=shapely.Polygon(said), drawn=shapely.Polygon(ring))


def anywhere(rng: np.random.Generator) -> Ground:
    """Draw a star that crosses nothing."""
    reach = 10 ** rng.uniform(0, 1.7)
    ring = star(rng, (rng.uniform(-179 + min(1.5 * reach, 178), 179 - min(1.5 * reach, 178)), rng.uniform(-70, 70)), reach)
    return Ground(said=shapely.Polygon(ring), drawn=shapely.Polygon(ring))


def round_a_pole(rng: np.random.Generator) -> Ground:
    """Draw a ring round a pole: to the oracle it is all that lies on the pole's side of a line without an end."""
    pole = rng.choice([-90.0, 90.0])
    lons = np.sort(rng.uniform(-180, 180, 12) * 0.02 + np.arange(-180, 180, 30) + 15)
    lats = pole - np.sign(pole) * rng.uniform(1, 10 ** rng.uniform(0.5, 1.7), len(lons))
    ring = np.column_stack([lons, lats])
    line = np.concatenate([np.add(ring, (turn, 0)) for turn in (-720, -360, 0, 360, 720)])
    drawn = shapely.Polygon([*line, (line[-1, 0], pole), (line[0, 0], pole)])
    return Ground(said=shapely.Polygon(ring if rng.random() < 0.5 else ring[::-1]), drawn=drawn)


def boxed(rng: np.random.Generator) -> tuple[BBox, Any]:
    """Draw a box, over the antimeridian if it comes to lie there, and as a polygon."""
    west, width = rng.uniform(-180, 180), 10 ** rng.uniform(0, 2.4)
    south = rng.uniform(-90, 80)
    north = min(90.0, south + 10 ** rng.uniform(0, 2))
    east = west + width
    return BBox(west, south, east if east <= 180 else east - 360, north), shapely.box(west, south, east, north)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One query's filter, and who passes it."""

    only: SearchFilter
    passing: np.ndarray
    limit: int


@dataclass
class Draws:
    """Filters at random."""

    world: World
    shapes: int
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))

    @functools.cached_property
    def grounds(self) -> list[tuple[Ground, np.ndarray]]:
        """Polygons that no ring crosses, and who meets them as bits."""
        kinds = (anywhere, over_the_antimeridian, round_a_pole)
        drawn: list[Ground] = []
        while len(drawn) < self.shapes:
            ground = kinds[len(drawn) % len(kinds)](self.rng)
            drawn += [ground] if ground.drawn.is_valid else []
        return [(ground, np.packbits(self.world.on_ground(ground.drawn))) for ground in drawn]

    def one(self) -> Asked:
        """Draw one."""
        world, rng = self.world, self.rng
        passing, fields = np.ones(len(world.days), bool), {}
        place = rng.choice(["none", "box", "polygon"], p=[0.25, 0.3, 0.45])
        if place == "box":
            fields["bbox"], drawn = boxed(rng)
            passing &= world.on_ground(drawn)
        elif place == "polygon":
            ground, bits = self.grounds[rng.integers(self.shapes)]
            fields["intersects"] = ground.said
            passing &= np.unpackbits(bits, count=len(passing)).astype(bool)
        if rng.random() < 0.3:
            first = int(rng.integers(0, DAYS))
            last = min(DAYS, first + int(10 ** rng.uniform(2, 3.6)))
            fields["interval"] = tuple(EPOCH + datetime.timedelta(days=day) for day in (first, last))
            passing &= (world.days >= first) & (world.days <= last)
        if rng.random() < 0.25:
            chosen = rng.choice(LABELS, rng.integers(1, 4), replace=False)
            fields["labels"] = tuple(f"label-{label}" for label in chosen)
            passing &= np.isin(world.labels, chosen)
        if rng.random() < 0.2:
            clouds = rng.choice(10, rng.integers(1, 9), replace=False).tolist()
            fields["where"] = {"cloud": clouds}
            passing &= np.isin(world.clouds, clouds)
        return Asked(only=SearchFilter(**fields), passing=passing, limit=int(rng.choice([1, 10, 10, 10, 50])))


def published(folder: Path, world: World) -> tuple[Version, IndexManifest, str]:
    """Publish an index of the kind that `auto` takes, effort not tuned yet."""
    choice = choose(len(world.vectors), DIM, recall=RECALL)
    kind = KINDS[choice.kind]
    quantiser = None
    if kind.trains:
        sample = sample_rows(len(world.vectors), sample_size(len(world.vectors)))
        quantiser = kind.dumped(kind.trained(world.vectors[sample], rows=len(world.vectors)))
    entry, files = build_segment("segment-00000", world.vectors, world.table(), kind=choice.kind, quantiser=quantiser)
    draft = Artefact(open_store(f"file:{folder}"), "indexes", "benchmark").draft("v1")
    for name, data in files.items():
        draft.write(name, data)
    manifest = IndexManifest(
        encoder_uri="encoder",
        encoder_fingerprint="0" * 64,
        distance="cosine",
        dimension=DIM,
        kind=choice.kind,
        why=choice.why,
        effort=Effort(),
        recall=None,
        quantiser=None if quantiser is None else "0" * 64,
        segments=(entry,),
        deleted=0,
    )
    return draft.publish({"parents": {}, "counts": {}, **manifest.fields()}), manifest, choice.kind


@dataclass
class Tally:
    """What answers were worth."""

    wrong_exact: int = 0
    short: int = 0
    recalls: list[float] = field(default_factory=list)
    milliseconds: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})

    def count(self, hits: Hits, asked: Asked, scores: np.ndarray, query: np.ndarray, world: World) -> None:
        """Compare an answer with all tiles that pass; `scores` (rows,) float32 of all tiles."""
        passing = np.flatnonzero(asked.passing)
        wanted = min(asked.limit, len(passing))
        few = min(len(passing), wanted + 20)
        best = passing[np.argpartition(-scores[passing], few - 1)[:few]] if wanted else passing[:0]
        exactly = np.sort(world.vectors[best].astype(np.float64) @ query.astype(np.float64))[::-1]
        mine = world.vectors[hits.rows].astype(np.float64) @ query.astype(np.float64)
        right = asked.passing[hits.rows] & (mine >= exactly[wanted - 1] - 1e-6) if wanted else np.ones(len(hits.rows), bool)
        self.short += len(hits.rows) < wanted or hits.candidates != len(passing)
        if hits.exact:
            self.wrong_exact += len(hits.rows) != wanted or not right.all() or bool((np.diff(mine) > 1e-6).any())
        else:
            self.recalls.append(float(right.sum()) / wanted)


def measured(rows: int, queries: int, shapes: int) -> dict[str, Any]:
    """Search, compare, and return the figures."""
    begun = time.time()
    world = World(rows)
    with tempfile.TemporaryDirectory() as folder:
        version, manifest, kind = published(Path(folder), world)
        segment = load_segment(version, manifest.segments[0], manifest, Path(folder))
        table = load_table(version, manifest.segments[0], Path(folder))
        effort, estimate = tuned(kind, [segment], world.vectors[sample_rows(rows, 1000, seed=9)], recall=RECALL)
        _say(f"{kind}, {effort}, {estimate}, after {time.time() - begun:.0f} s")
        searcher, draws, tally = Searcher(LocalShards([segment], effort=effort), [table]), Draws(world, shapes), Tally()
        asking = made(queries, seed=4)
        for start in range(0, queries, BLOCK):
            block = asking[start : start + BLOCK]
            scores = block @ world.vectors.T
            for number, query in enumerate(block):
                asked = draws.one()
                clock = time.process_time()
                hits = searcher.search(query, asked.limit, only=asked.only)
                tally.milliseconds[hits.exact].append(1000 * (time.process_time() - clock))
                tally.count(hits, asked, scores[number], query, world)
            if start // BLOCK % 32 == 0:
                _say(f"{start + len(block)} queries after {time.time() - begun:.0f} s: {figures_of(tally)}")
    return figures_of(tally)


def figures_of(tally: Tally) -> dict[str, Any]:
    """Return the figures."""
    answers = sum(map(len, tally.milliseconds.values()))
    recalls = np.array(tally.recalls or [1.0])
    return {
        "queries": answers,
        "wrong_exact": tally.wrong_exact,
        "short": tally.short,
        "approximate_share": len(tally.recalls) / answers,
        "recall": float(recalls.mean()),
        "recall_worst_hundredth": float(np.quantile(recalls, 0.01)),
        "exact_ms": float(np.median(tally.milliseconds[True] or [0.0])),
        "approximate_ms": float(np.median(tally.milliseconds[False] or [0.0])),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure, and print the figures."""
    options = command.parser("filtered_search", __doc__, quick="a tenth of the tiles and queries").parse_args()
    figures = measured(*(QUICK if options.quick else FULL), QUICK_SHAPES if options.quick else SHAPES)
    for name, value in figures.items():
        print(f"{name:<24}{value:>12.4f}" if isinstance(value, float) else f"{name:<24}{value:>12}")
    if options.json:
        command.end("filtered_search", figures, ("rayjobs", "numpy", "shapely", "pyarrow", command.FAISS))


if __name__ == "__main__":
    main()
