"""The driver's side of `rayjobs label`: learn from the labels given so far, publish what should be labelled next, and ask the oracle."""

from __future__ import annotations

import dataclasses
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
from rayjobs.label.asked import Asked, asked_of, tiles_to_embed
from rayjobs.label.examples import examples_of, pictures_of
from rayjobs.label.files import EXPERIMENT, examples_named, files_of, predicted_by, rounds_of
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
    from rayjobs.label.section import LabelSection
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
    """Return what the next round will do and take. Raises what `run` raises of a section that asks for what is not there."""
    name = _name(experiment)
    workspace, settings = experiment.open_workspace(), experiment.label
    workspace.store.check()
    source = workspace.set.require("run `rayjobs sample` first")
    encoder, splits = chosen_encoder(experiment), experiment.index.splits
    taxonomy, _ = _taxonomy(experiment, workspace.store, name)
    asked = asked_of(settings, taxonomy, tiles_to_embed(source, splits))
    _check_oracle(experiment, taxonomy, asked)
    pictures_of(settings.examples, asked.tile_ids, encoder.read())
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
    asked = asked_of(experiment.label, taxonomy, tiles_to_embed(source, experiment.index.splits))
    _check_oracle(experiment, taxonomy, asked)
    experiment = _with_examples(experiment, taxonomy, asked, console)
    pictures = pictures_of(experiment.label.examples, asked.tile_ids, encoder.read())
    embedded, table = _embedded(experiment, source, encoder, console)  # what takes long comes after all checks
    bench = _Bench(experiment, embedded, table, taxonomy, asked, examples_of(experiment.label.examples, embedded, pictures))
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


def _check_oracle(experiment: Experiment, taxonomy: Taxonomy, asked: Asked) -> None:
    """Refuse an oracle that answers another question than before in this taxonomy. Raises `ConfigError`."""
    store = experiment.open_workspace().store
    last = queue_of(store, taxonomy.name).current()
    before = last.manifest.get("oracle") if last else None
    oracle.check_same_question(experiment.label, taxonomy, LabelStore(store, taxonomy.name).events(), asked.knows, before)


def _with_examples(experiment: Experiment, taxonomy: Taxonomy, asked: Asked, console: Console) -> Experiment:
    """Return the experiment with the examples of the round before, where it names none and no head can be trained yet.

    Without them the neighbours that are queued, and perhaps on somebody's screen, would give way to tiles drawn at random.
    """
    store, settings = experiment.open_workspace().store, experiment.label
    last = queue_of(store, taxonomy.name).current()
    if settings.examples or not settings.seed_neighbours or last is None or last.manifest.get("sought") != asked.sought:
        return experiment
    current = current_labels(LabelStore(store, taxonomy.name).events(), renamed=taxonomy.renamed)
    if asked.tells_two_apart({tile: one.label for tile, one in current.items()}):
        return experiment
    names = examples_named(last)
    if not names:
        return experiment
    console.say(f"label            goes on with the examples of the round before: {', '.join(names)}")
    return dataclasses.replace(experiment, label=dataclasses.replace(settings, examples=names))


def _question(settings: LabelSection, before: Version | None) -> Mapping[str, Any] | None:
    """Return what a round's manifest says of the oracle that answered last; None where there was none."""
    if settings.oracle is None:
        return before.manifest.get("oracle") if before else None
    return {"oracle": settings.oracle, "oracle_class": settings.oracle_class}


class _Bench:
    """All that the rounds of one command have in common."""

    def __init__(
        self, experiment: Experiment, embedded: Embeddings, table: str, taxonomy: Taxonomy, asked: Asked, examples: Vectors
    ) -> None:
        """Take the embedded tiles, the taxonomy, and what is asked of both. Writes nothing."""
        self._experiment, self._settings, self._embedded, self._taxonomy = experiment, experiment.label, embedded, taxonomy
        self._asked, self._examples = asked, examples
        store = experiment.open_workspace().store
        self._labels, self._target = LabelStore(store, taxonomy.name), queue_of(store, taxonomy.name)
        self._digest = hashlib.sha256(repr((_FORMAT, table, self._keys(), examples.tobytes())).encode())

    def publish(self, console: Console) -> Version:
        """Return the round that follows from what has been said by now: the current one, where nothing was said since."""
        known, before = self._known(), self._target.current()
        digest = self._digest.copy()
        digest.update(known.digest().encode())
        if before is not None and before.manifest.get("follows") == digest.hexdigest():
            return before
        earlier = rounds_of(before)
        found = next_round(known, self._examples, self._settings, before=predicted_by(before, self._asked.classes), earlier=earlier)
        draft = self._target.draft(f"{len(earlier):04}-{digest.hexdigest()[:12]}", after=before)
        files = files_of(known, found, earlier, self._by_oracle())
        for name, data in {**files, EXPERIMENT: self._experiment.to_yaml().encode()}.items():
            draft.write(name, data)
        fields = {
            "parents": {"embeddings": self._embedded.fingerprint, "queue": before.version if before else None},
            "classes": list(self._asked.classes),
            "sought": self._asked.sought,
            "oracle": _question(self._settings, before),
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
        if not self._asked.knows or left <= 0:
            return False
        queued: list[str] = read_geoparquet(version.read(FILE))["tile_id"].to_pylist()[:left]
        if queued:
            self._labels.append(oracle.events(self._labels.taxonomy(), queued, self._asked.knows))
        return bool(queued)

    def _keys(self) -> Mapping[str, Any]:
        return {name: value for name, value in sorted(to_dict(self._settings).items()) if name not in _IDLE}

    def _known(self) -> Known:
        """Return what has been said by now."""
        current = current_labels(self._labels.events(), renamed=self._taxonomy.renamed)
        said = numbered(self._asked.tile_ids, {tile: one.label for tile, one in current.items()}, self._asked.classes)
        return Known(
            table=self._embedded.table,
            vectors=self._embedded.vectors,
            classes=self._asked.classes,
            sought=self._asked.classes.index(self._asked.sought),
            said=said,
            may_be_queued=self._asked.may_be_queued,
            truth=np.where(self._asked.measured, said if self._asked.truth is None else self._asked.truth, -1),
        )


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
