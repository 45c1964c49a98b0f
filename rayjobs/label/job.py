"""The driver's side of `rayjobs label`: learn from the labels given so far, publish what should be labelled next, and ask the oracle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs.cluster.session import joined, wants_gpu
from rayjobs.config import to_dict
from rayjobs.embed.encoder import chosen_encoder, tell_encoder
from rayjobs.embed.job import Embeddings, embed, read_embeddings, table_version, tiles_of
from rayjobs.errors import ConfigError, UnknownTaxonomyError
from rayjobs.label import oracle
from rayjobs.label.examples import examples_of
from rayjobs.label.files import files_of, predicted_by, rounds_of
from rayjobs.label.known import Known, numbered
from rayjobs.label.round import next_round
from rayjobs.labels.current import current_labels
from rayjobs.labels.queue import FILE, queue_of
from rayjobs.labels.store import LabelStore
from rayjobs.labels.taxonomy import LabelClass, Taxonomy, check_taxonomy_name, publish_taxonomy, read_taxonomy
from rayjobs.tiles.table import read_geoparquet
from rayjobs.tracking import Dataset, tracked

if TYPE_CHECKING:
    from rayjobs.console import Console
    from rayjobs.embed.encoder import ChosenEncoder
    from rayjobs.experiment import Experiment
    from rayjobs.geo import BoolArray
    from rayjobs.labels.acquisition.diversity import Vectors
    from rayjobs.storage import Store, Version

_FORMAT = 1
"""Raised when the same labels and embeddings would give another round."""
_IDLE = frozenset({"oracle", "oracle_class", "budget", "classes"})
"""Keys that do not change what a round finds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What `rayjobs label` tells at its end."""

    taxonomy: str
    version: str
    """Of the queue."""
    round: int
    labels: int
    """Labels that the head was trained on."""
    by_class: dict[str, int]
    queued: int
    advice: str | None
    """Whether to go on; None while there is no head."""
    measured: dict[str, float]
    """Of `label.measured`; empty where nothing is known of it."""
    files: str
    """Where the round lies."""


def preview(experiment: Experiment) -> dict[str, Any]:
    """Return what the next round will do and take."""
    name = _name(experiment)
    workspace, settings = experiment.open_workspace(), experiment.label
    workspace.store.check()
    source = workspace.set.require("run `rayjobs sample` first")
    encoder, splits = chosen_encoder(experiment), experiment.index.splits
    current = workspace.embeddings().current()
    embedded = current is not None and current.version == table_version(source, encoder.fingerprint, splits)
    rounds = rounds_of(queue_of(workspace.store, name).current())
    return {
        "taxonomy": name,
        "encoder": encoder.words,
        "tiles": tiles_of(source, splits),
        "embedded_already": embedded,
        "rounds": len(rounds),
        "labels_at_last_round": rounds[-1]["labels"] if rounds else 0,
        "strategy": f"{settings.strategy}, {settings.diversity}",
        "oracle": settings.oracle and f"{settings.oracle}, up to {settings.budget} answers",
        "cautions": list(encoder.cautions),
    }


def run(experiment: Experiment, console: Console) -> Result:
    """Work out the next round from what has been labelled; with an oracle, round after round up to the budget."""
    name, workspace = _name(experiment), experiment.open_workspace()
    workspace.store.check()
    source = workspace.set.require("run `rayjobs sample` first")
    encoder = chosen_encoder(experiment)
    taxonomy, made = _taxonomy(experiment, workspace.store, name)
    tell_encoder(encoder, console, "label")
    embedded, table = _embedded(experiment, source, encoder, console)
    bench = _Bench(experiment, embedded, table, taxonomy, examples_of(experiment.label.examples, embedded, encoder.read()))
    if made:  # last, after all checks: a taxonomy can be widened, but never taken back
        publish_taxonomy(workspace.store, name, taxonomy.classes)
    version, before = bench.publish(console), ""
    while version.version != before and bench.ask(version):
        version, before = bench.publish(console), version.version
    _log(experiment, source, taxonomy.name, version, console)
    last = rounds_of(version)[-1]
    return Result(
        taxonomy=taxonomy.name,
        version=version.version,
        round=last["round"],
        labels=last["labels"],
        by_class=last["by_class"],
        queued=version.manifest["counts"]["queued"],
        advice=last.get("advice"),
        measured=last.get("measured", {}),
        files=version.store.address(version.prefix),
    )


def _name(experiment: Experiment) -> str:
    """Return the name of the taxonomy. Raises `ConfigError` where what is given, or the experiment's name in its place, is none."""
    given = experiment.label.taxonomy
    try:
        return check_taxonomy_name(given or experiment.name)
    except ValueError as error:
        said = "label.taxonomy" if given else "label.taxonomy is not given, and the experiment's name"
        raise ConfigError(f"{said}: {error}") from None


def _embedded(experiment: Experiment, source: Version, encoder: ChosenEncoder, console: Console) -> tuple[Embeddings, str]:
    """Return the embedding table of the index, and its version; Ray is joined only where it is not there yet."""
    workspace, splits = experiment.open_workspace(), experiment.index.splits
    target = workspace.embeddings()
    version = target.current()
    if version is None or version.version != table_version(source, encoder.fingerprint, splits):
        with joined(experiment.ray, workspace=workspace.store.uri, shared=workspace.shared, say=console.say):
            version = embed(source, encoder.read(), target, console, gpu=wants_gpu(experiment.ray), splits=splits)
    return read_embeddings(version), version.version


def _taxonomy(experiment: Experiment, store: Store, name: str) -> tuple[Taxonomy, bool]:
    """Return the taxonomy, and whether it is yet to be published: one that is not there has the classes of `label.classes`."""
    try:
        return read_taxonomy(store, name), False
    except UnknownTaxonomyError:
        return Taxonomy(name=name, version=1, classes=tuple(LabelClass(name=one) for one in experiment.label.classes)), True


class _Bench:
    """All that the rounds of one command have in common."""

    def __init__(self, experiment: Experiment, embedded: Embeddings, table: str, taxonomy: Taxonomy, examples: Vectors) -> None:
        """Take the embedded tiles and the taxonomy; ask the oracle what it knows. Writes nothing.

        Raises:
            ConfigError: the section asks for what the taxonomy, the tiles or the oracle have not.
        """
        self._experiment, self._settings, self._embedded, self._taxonomy = experiment, experiment.label, embedded, taxonomy
        self._classes = tuple(one.name for one in taxonomy.classes)
        self._sought = self._settings.sought or self._classes[0]
        if self._sought not in self._classes:
            raise ConfigError(f"label.sought: taxonomy {taxonomy.name} has no class {self._sought!r}, but {', '.join(self._classes)}")
        store = experiment.open_workspace().store
        self._labels, self._target = LabelStore(store, taxonomy.name), queue_of(store, taxonomy.name)
        self._ids: list[str] = embedded.table["tile_id"].to_pylist()
        self._knows = oracle.answers(self._settings, embedded.table, self._classes, self._sought)
        self._truth = numbered(self._ids, self._knows, self._classes) if self._knows else None
        self._measured, self._asked = self._parts()
        self._examples = examples
        self._digest = hashlib.sha256(repr((_FORMAT, table, self._keys(), examples.tobytes())).encode())

    def publish(self, console: Console) -> Version:
        """Return the round that follows from what has been said by now: the current one, where nothing was said since."""
        known, before = self._known(), self._target.current()
        digest = self._digest.copy()
        digest.update(known.digest().encode())
        if before is not None and before.manifest.get("follows") == digest.hexdigest():
            return before
        earlier = rounds_of(before)
        found = next_round(known, self._examples, self._settings, before=predicted_by(before, self._classes), earlier=earlier)
        draft = self._target.draft(f"{len(earlier):04}-{digest.hexdigest()[:12]}", after=before)
        for name, data in {
            **files_of(known, found, earlier, self._by_oracle()),
            "experiment.yaml": self._experiment.to_yaml().encode(),
        }.items():
            draft.write(name, data)
        fields = {
            "parents": {"embeddings": self._embedded.fingerprint, "queue": before.version if before else None},
            "classes": list(self._classes),
            "sought": self._sought,
            "follows": digest.hexdigest(),
            "counts": {"queued": len(found.queue), "labels": found.entry["labels"]},
        }
        console.say(_told(found.entry, len(found.queue)))
        return draft.publish(fields)

    def _by_oracle(self) -> set[str]:
        """Return the tiles whose votes are the oracle's alone."""
        events = self._labels.events()
        current = current_labels(events)
        alone = {tile: one.people[0] for tile, one in current.items() if len(one.people) == 1}
        return {one.tile_id for one in events if one.origin == "oracle" and alone.get(one.tile_id) == one.person}

    def ask(self, version: Version) -> bool:
        """Have the oracle label the queue, and return whether there was anything to label."""
        last = rounds_of(version)[-1]
        left = self._settings.budget - last["labels"] - last["unsure"]
        if not self._knows or left <= 0:
            return False
        queued: list[str] = read_geoparquet(version.read(FILE))["tile_id"].to_pylist()[:left]
        if queued:
            self._labels.append(oracle.events(self._labels.taxonomy(), queued, self._knows))
        return bool(queued)

    def _keys(self) -> Mapping[str, Any]:
        return {name: value for name, value in sorted(to_dict(self._settings).items()) if name not in _IDLE}

    def _known(self) -> Known:
        """Return what has been said by now."""
        current = current_labels(self._labels.events(), renamed=self._taxonomy.renamed)
        said = numbered(self._ids, {tile: one.label for tile, one in current.items()}, self._classes)
        return Known(
            table=self._embedded.table,
            vectors=self._embedded.vectors,
            classes=self._classes,
            sought=self._classes.index(self._sought),
            said=said,
            may_be_queued=self._asked,
            truth=np.where(self._measured, said if self._truth is None else self._truth, -1),
        )

    def _parts(self) -> tuple[BoolArray, BoolArray]:
        """Return (tiles,) which tiles are measured on, and about which people may be asked. Raises `ConfigError`: about none."""
        split = np.array(self._embedded.table["split"].to_pylist(), object)
        measured = split == self._settings.measured if self._settings.measured else np.zeros(len(split), bool)
        asked = ~measured if self._settings.splits is None else ~measured & np.isin(split, list(self._settings.splits))
        if not asked.any():
            raise ConfigError("no embedded tile may be labelled; widen label.splits, label.measured or index.splits")
        return measured, asked


def _told(entry: Mapping[str, Any], queued: int) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in entry["by_class"].items())
    precision = entry.get("measured", {}).get("AP")
    measured = "" if precision is None else f"; average precision {precision:.3f}"
    advice = entry.get("advice", "no head yet")
    return f"label            round {entry['round']}: {entry['labels']} labels ({counts}){measured}; {queued} queued; {advice}"


def _log(experiment: Experiment, source: Version, taxonomy: str, version: Version, console: Console) -> None:
    """Tell MLflow of all rounds so far, one run for each command: what was measured over the labels spent."""
    with tracked(
        experiment.tracking,
        workspace=experiment.open_workspace().store.uri,
        verb="label",
        run=f"{taxonomy}-{version.version}",
        parameters=experiment.to_dict(),
        say=console.say,
        dataset=Dataset.of(source),
    ) as tracker:
        for row in rounds_of(version):
            tracker.metrics(_figures(row), step=row["labels"])
        tracker.files(
            {name: version.read(name) for name in (entry.name for entry in version.files) if name.endswith((".json", ".png", ".yaml"))}
        )


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a round's figures by name: `measured/AP`, `labels/positive`, `expected_left`."""
    parts = {"labels": row["by_class"], "validated": row.get("validated", {}), "measured": row.get("measured", {})}
    nested = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    plain = {name: row[name] for name in ("agreement", "expected_left", "expected_recall", "unsure", "left") if row.get(name) is not None}
    return {name: float(value) for name, value in {**nested, **plain}.items()}
