"""The report of one evaluation as one page of HTML that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayjobs.evaluate.page import tables
from rayjobs.evaluate.page.document import document, picture
from rayjobs.evaluate.page.markup import Html, element, joined

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Json = Mapping[str, Any]

CAPTIONS = {
    "rows": "Every metric with its 95 % interval, row by row. The trained row is blue, with a diamond.",
    "ranks": "Of what is found up to each rank, the share that is relevant, over all queries. The trained row is blue.",
    "neighbours": "Queries and what is nearest to them. A blue solid frame and ✓: relevant. An orange dashed frame and ✗: not relevant.",
    "contact": "A query and its first results, row by row from the most similar on; `results.json` lists them for every row.",
    "confusion": "Which class a probe takes for which. Colour is the share of the true class; numbers are tiles, over all splits.",
    "pca": "The two directions of greatest variance. A line of sight onto a space of many dimensions: what lies apart here is apart, "
    "but what overlaps here need not.",
    "pca-thumbnails": "The same directions, with the tiles themselves; of those in one place, one is shown.",
    "umap": "UMAP keeps neighbours together. Distances between groups, and their sizes, mean little.",
    "umap-thumbnails": "The same layout, with the tiles themselves; of those in one place, one is shown.",
    "curves": "What training told, epoch by epoch.",
}
"""What is to be known of each kind of picture; the kind is the part of its name before a slash."""

_SECTIONS = {
    "Embedding": ("pca", "pca-thumbnails", "umap", "umap-thumbnails"),
    "Nearest neighbours": ("neighbours",),
    "Training": ("curves",),
}
_WORDS = {
    "set_version": "set",
    "split": "part of the set",
    "lone_queries": "tiles without another relevant one, not asked",
    "gallery": "gallery, tiles",
    "relevant": "relevant to a query",
    "excluded": "excluded from its answers",
    "units": "independent units",
    "earlier_reports_on_this_split": "earlier reports of this run on this part",
}
_COMPARED = {"higher": "than", "lower": "than", "not told apart": "from"}


def page(
    report: Json,
    pictures: Mapping[str, bytes],
    *,
    name: str,
    experiment: str,
    versions: Mapping[str, str],
    notes: Sequence[str] = (),
    ours: str = "trained",
) -> str:
    """Return the page.

    Args:
        report: as `report.json` holds it, see `rayjobs.evaluate.report`. Names in it may be hostile.
        pictures: PNG by name: a kind of `CAPTIONS`, or `kind/of what`, such as `pca/trained`; of other kinds, without a caption.
        name: of the experiment.
        experiment: the resolved experiment file, YAML.
        versions: of software and parents, and fingerprints, by name.
        notes: what could not be shown, and what to do about it.
        ours: the row that is set off from the others.

    Raises:
        ValueError: a picture is not a PNG.
    """
    parts = _parts(report, pictures, experiment, versions, notes, ours)
    return document(f"{name}: how well it finds", [_summary(report, ours)], parts, _cautions(report))


def _parts(
    report: Json, pictures: Mapping[str, bytes], experiment: str, versions: Mapping[str, str], notes: Sequence[str], ours: str
) -> list[tuple[str, Html]]:
    protocol = {key: value for key, value in report["protocol"].items() if key != "cautions"}
    known = {kind for kinds in _SECTIONS.values() for kind in kinds} | {"rows", "ranks", "confusion", "contact"}
    shown = [(title, _figures(pictures, kinds)) for title, kinds in _SECTIONS.items()]
    rest = dict.fromkeys(_kind(name) for name in pictures if _kind(name) not in known)
    embedding, *others = shown
    noted = joined(*(element("p", note, class_="soft") for note in notes))
    return [
        (f"{report['objective']}, the metric that counts", tables.headline(report, ours)),
        ("How it was measured", _definitions(protocol)),
        ("All metrics", joined(tables.metrics(report, ours), _figures(pictures, ("rows", "ranks")))),
        ("Without some classes", _without(report, ours)),
        ("Distances", _distances(report, ours)),
        ("Probes", _probes(report, ours)),
        ("Class by class", _classes(report, ours)),
        ("Date by date", _dates(report, ours)),
        ("Single pixels", _segmentation(report, ours)),
        ("Confusion", joined(_figures(pictures, ("confusion",)), _confusion(report, ours))),
        (embedding[0], joined(embedding[1], noted)),
        *others,
        ("Contact sheets", _contact(pictures)),
        ("Further pictures", _figures(pictures, tuple(rest))),
        ("Experiment", _folded("The resolved experiment file", element("pre", element("code", experiment)))),
        ("Versions and fingerprints", _definitions(versions)),
    ]


def _summary(report: Json, ours: str) -> Html:
    """Say what the differences in the objective allow to say."""
    objective = report["objective"]
    value = next((row["metrics"][objective] for row in report["rows"] if row["name"] == ours), None)
    lines = [element("p", element("strong", ours, class_="ours"), f": {objective} ", tables.figure(value))]
    for row, gap in report["differences"].items():
        verdict = tables.verdict(gap)
        if verdict in _COMPARED:
            lines.append(element("p", f"{verdict} {_COMPARED[verdict]} {row}: ", tables.figure(gap, signed=True)))
    return joined(*lines)


def _cautions(report: Json) -> Html:
    found = report["protocol"].get("cautions") or ()
    if not found:
        return Html()
    items = element("ul", *(element("li", caution) for caution in found))
    return element("div", element("strong", "What keeps these figures from saying more"), items, class_="cautions", role="note")


def _definitions(values: Json) -> Html:
    pairs = (joined(element("dt", _WORDS.get(key, key.replace("_", " "))), element("dd", _value(value))) for key, value in values.items())
    return element("dl", *pairs) if values else Html()


def _value(value: Any) -> Html:
    if isinstance(value, dict):
        return element("ul", *(element("li", f"{key}: ", _value(inner)) for key, inner in value.items()))
    if isinstance(value, list | tuple):
        return element("ul", *(element("li", _value(inner)) for inner in value))
    return joined(tables.number(value) if isinstance(value, float) else value)


def _without(report: Json, ours: str) -> Html:
    found = report.get("without")
    if not found:
        return Html()
    means = (
        f"The same without {', '.join(found['classes'])}: tiles of these classes neither ask nor are found. "
        f"{found['queries']:,} queries, {found['gallery']:,} tiles in the gallery."
    )
    return joined(element("p", means), tables.without(report, ours))


def _distances(report: Json, ours: str) -> Html:
    found = report.get("distances")
    if not found:
        return Html()
    means = (
        "How far from its query what is found lies, along great circles, kilometres; of random pairs of tiles "
        f"{tables.number(found['random_pairs'])}. Likeness does not ask for nearness: this says where what is alike lies."
    )
    return joined(element("p", means), tables.distances(found, ours))


def _probes(report: Json, ours: str) -> Html:
    found = tables.probes(report, ours)
    if not found:
        return Html()
    means = (
        "What simple predictors, fitted on the embeddings of some tiles, tell of others. On a random split, neighbours of tested tiles are "
        "trained on, which flatters; the difference to the split by ground shows by how much."
    )
    sizes = dict.fromkeys(
        f"{entry['target']}, {entry['split']}: {entry['splits']} splits, {entry['test_ratio']:.2f} tested for each trained tile"
        for entry in report["probes"]
    )
    foldable = (_folded(heading, content, unfolded=number == 0) for number, (heading, content) in enumerate(found))
    return joined(element("p", means), element("p", "; ".join(sizes), class_="soft"), *foldable)


def _classes(report: Json, ours: str) -> Html:
    found = {row: entries for row, entries in (report.get("classes") or {}).items() if entries}
    rows = sorted(found, key=lambda row: row != ours)
    return joined(*(_folded(row, tables.classes(found[row]), unfolded=row == ours) for row in rows))


def _dates(report: Json, ours: str) -> Html:
    found = report.get("dates") or {}
    rows = sorted((row for row in found if found[row]), key=lambda row: row != ours)
    return joined(*(_folded(row, tables.dates(found[row]), unfolded=row == ours) for row in rows))


def _segmentation(report: Json, ours: str) -> Html:
    found = report.get("segmentation")
    if not found:
        return Html()
    means = "What a linear probe, fitted on the cells of each row's last feature map, tells of the class of single pixels."
    return joined(element("p", means), tables.segmentation(found, ours), _definitions(found["protocol"]))


def _contact(pictures: Mapping[str, bytes]) -> Html:
    sheets = _figures(pictures, ("contact",))
    return _folded("One query each, with all that is shown of its answer", sheets) if sheets else Html()


def _confusion(report: Json, ours: str) -> Html:
    found = report.get("confusion")
    if not found:
        return Html()
    means = f"Counts of the probe {found['probe']}, {found['split']} split"
    rows = sorted(found["rows"], key=lambda row: row != ours)
    return joined(*(_folded(f"{means}: {row}", tables.confusion(found, row)) for row in rows))


def _folded(heading: str, content: Html, *, unfolded: bool = False) -> Html:
    return element("details", element("summary", heading), content, open="" if unfolded else None)


def _kind(name: str) -> str:
    return name.partition("/")[0]


def _figures(pictures: Mapping[str, bytes], kinds: Sequence[str]) -> Html:
    """Return the pictures of some kinds, those of one subject together."""
    chosen = [name for name in pictures if _kind(name) in kinds]
    subjects = list(dict.fromkeys(name.partition("/")[2] for name in chosen))
    chosen.sort(key=lambda name: (subjects.index(name.partition("/")[2]), kinds.index(_kind(name))))
    return joined(*(_figure(name, pictures[name]) for name in chosen))


def _figure(name: str, png: bytes) -> Html:
    kind, _, subject = name.partition("/")
    caption = ". ".join(part for part in (subject, CAPTIONS.get(kind, "" if subject else kind)) if part)
    return picture(name, png, caption)
