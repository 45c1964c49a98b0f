"""The demo's steps: imagery, the verbs one after the other, three queries over HTTP, pictures and a summary."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import httpx

from rayjobs.demo import imagery, pictures, places
from rayjobs.errors import DemoError
from rayjobs.experiment import Experiment, load

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rayjobs.console import Console

_START_TIMEOUT_S = 600.0
"""The service says what it waits for, and ends by itself where it cannot start; a busy machine takes minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """One run of the demo."""

    config: Path
    overrides: list[str]
    """Where the demo's folder differs from the experiment file's."""
    folder: Path
    console: Console
    seconds: dict[str, float]
    """Of each stage, filled as it ends."""


def parser() -> argparse.ArgumentParser:
    """Return the options of `rayjobs demo`."""
    made = argparse.ArgumentParser(prog="rayjobs demo", description="The whole road on two real Landsat scenes, in about ten minutes.")
    made.add_argument(
        "--config", type=Path, default=Path("configs/landsat-tile2vec.yaml"), help="the experiment (configs/landsat-tile2vec.yaml)"
    )
    made.add_argument("--folder", type=Path, default=Path("demo"), help="where imagery, workspace and results go (demo)")
    made.add_argument("--serve", action="store_true", help="keep the service up at the end")
    made.add_argument("--json", action="store_true", help="end stdout with one JSON object")
    made.add_argument("--verbose", action="store_true", help="show what Ray and GDAL say, too")
    return made


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Walk the road and return the summary."""
    folder = options.folder.absolute()
    source = json.dumps([{**_source(options.config), "uris": [f"{folder}/imagery/*.TIF"]}])
    overrides = ["--workspace.uri", f"file:{folder}/workspace", "--rasters.sources", source]
    walk = Walk(config=options.config, overrides=overrides, folder=folder, console=console, seconds={})
    with _timed(walk, "imagery"):
        origin = imagery.fetch(folder / "imagery", console)
    for verb in ("sample", "train"):
        _run_verb(walk, verb)
    evaluation = _run_verb(walk, "evaluate")
    _run_verb(walk, "index")
    experiment = load(options.config, overrides)
    with _timed(walk, "pictures"):
        pictures.write_sheet(experiment, folder / "results.png")
    with _service(walk, experiment) as url:
        with _timed(walk, "query"):
            answers = _ask(walk, experiment, url)
        places.write_map(experiment, answers, folder / "map.html")
        summary = _summary(walk, evaluation, origin)
        _tell(walk, summary, url, answers)
        if options.serve:
            console.say("the service stays up; end it with Ctrl-C")
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return summary


def _source(config: Path) -> dict[str, Any]:
    from rayjobs.config import read_yaml  # noqa: PLC0415

    source: dict[str, Any] = read_yaml(config)["rasters"]["sources"][0]
    return source


@contextmanager
def _timed(walk: Walk, stage: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    walk.seconds[stage] = round(time.monotonic() - begun, 1)


def _command(walk: Walk, verb: str, arguments: Sequence[str] = ()) -> list[str]:
    return [sys.executable, "-m", f"rayjobs.{verb}", "--config", str(walk.config), "--json", *arguments, *walk.overrides]


def _run_verb(walk: Walk, verb: str, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Run a verb as a person would, its progress shown, and return its JSON.

    Raises:
        DemoError: it failed.
    """
    shown = " ".join(arguments)
    walk.console.say(f"\n$ rayjobs {verb} --config {walk.config} {shown}")
    with _timed(walk, verb):
        process = subprocess.Popen(_command(walk, verb, arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603
        with process, _shown(process.stderr, walk.console):
            output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise DemoError(f"rayjobs {verb} failed with exit code {process.returncode}")
    result: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return result


@contextmanager
def _shown(stream: IO[str] | None, console: Console) -> Iterator[None]:
    """Pass a process's progress on, line by line, while the block runs."""

    def pass_on() -> None:
        for line in stream or ():
            console.say(line.rstrip())

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    yield
    thread.join()


@contextmanager
def _service(walk: Walk, experiment: Experiment) -> Iterator[str]:
    """Run `rayjobs serve` for the length of the block, and yield its address once it answers."""
    url = f"http://{experiment.serve.host}:{experiment.serve.port}"
    walk.console.say(f"\n$ rayjobs serve --config {walk.config}")
    begun = time.monotonic()
    process = subprocess.Popen(_command(walk, "serve"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # noqa: S603
    with process, _shown(process.stderr, walk.console):
        try:
            _wait(process, url)
            walk.seconds["serve"] = round(time.monotonic() - begun, 1)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _wait(process: subprocess.Popen[str], url: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(f"rayjobs serve ended with exit code {process.returncode}")
        try:
            if httpx.get(f"{url}/healthz", timeout=5).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise DemoError(
        f"the service at {url} did not answer within {_START_TIMEOUT_S:.0f} s; the lines above say what it waited for. The same command "
        "goes on from here, better on a machine that is less busy"
    )


def _ask(walk: Walk, experiment: Experiment, url: str) -> list[dict[str, Any]]:
    """Ask for three tiles of the test ground, and show where their likes lie."""
    answers = []
    for tile_id in pictures.chosen_queries(experiment):
        answer = _run_verb(walk, "query", ["--tile", tile_id, "--limit", "5", "--url", url])
        answer["query"] = tile_id
        answers.append(answer)
        for rank, feature in enumerate(answer["features"], start=1):
            lon, lat = places.middle(feature["geometry"])
            properties = feature["properties"]
            walk.console.say(f"  {rank}. {lat:.4f}, {lon:.4f}  score {properties['score']:.3f}  scene {properties['scene_id']}")
    return answers


def _summary(walk: Walk, evaluation: dict[str, Any], origin: str) -> dict[str, Any]:
    summary = {
        "rows": evaluation["rows"],
        "objective": evaluation["objective"],
        "differences": evaluation["differences"],
        "protocol": evaluation["protocol"],
        "imagery": origin,
        "seconds": walk.seconds,
    }
    (walk.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _tell(walk: Walk, summary: dict[str, Any], url: str, answers: list[dict[str, Any]]) -> None:
    say = walk.console.say
    say(f"\n{summary['objective']} on held-out ground (95 % interval over spatial blocks):")
    for row in summary["rows"]:
        metric = row["metrics"][summary["objective"]]
        interval = "" if metric["low"] is None else f"  [{metric['low']:.3f}, {metric['high']:.3f}]"
        say(f"  {row['name']:<18}{metric['value']:.3f}{interval}")
    body = json.dumps({"positives": [{"tile_id": answers[0]["query"]}], "limit": 5})
    say(f"\npictures   {walk.folder}/results.png\nmap        {walk.folder}/map.html\nsummary    {walk.folder}/summary.json")
    say(f"service    {url}/docs\ntry        curl -s {url}/v1/search -H 'content-type: application/json' -d '{body}'")
