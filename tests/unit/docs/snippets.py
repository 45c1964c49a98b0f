"""The code blocks of the documents, and what each must hold to, by its language."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pydantic
from markdown_it import MarkdownIt

from rayjobs.config import build, keys, yaml_of
from rayjobs.errors import ConfigError
from rayjobs.experiment import Experiment
from rayjobs.serve import schema

ROOT = Path(__file__).parents[3]
MINIMAL = {"name": "minimal", "rasters": {"sources": [{"kind": "files", "uris": ["imagery"]}]}}
"""An experiment with no more than it must have."""

PLACEHOLDERS = {
    "VERB": "sample",
    "LON": "-55.2",
    "LAT": "-25.6",
    "W": "-56",
    "S": "-27",
    "E": "-54",
    "N": "-25",
    "WEST": "-56",
    "SOUTH": "-27",
    "EAST": "-54",
    "NORTH": "-25",
    "TILE_ID": "0123456789abcdef0123",
    "HEAD": "127.0.0.1",
    "HOST": "127.0.0.1",
    "PORT": "8000",
    "TOKEN": "a-token",
    "VERSION": "69e3151ca7466176",
    "BUCKET": "bucket",
    "PREFIX": "prefix",
    "NAME...": "one two",
    "NAME": "one",
    "FILE": "FILE",
    "FOLDER": "FOLDER",
    ", ...]": "]",
}
"""What a reader puts in the place of words in capitals, and the rest of a list that is not written out."""

_PLACEHOLDER = re.compile(
    "|".join(rf"(?<![\w$./-]){re.escape(word)}(?![\w])" if word[0].isalpha() else re.escape(word) for word in PLACEHOLDERS)
)


class WrongSnippetError(AssertionError):
    """A block that would mislead whoever copies it."""


@dataclass(frozen=True)
class Snippet:
    """A fenced code block."""

    page: str
    """Path of its document, relative to the repository."""
    line: int
    language: str
    text: str
    experiments: tuple[dict, ...] = ()
    """The whole experiments on its page, which its commands may name by `NAME.yaml`."""

    def __str__(self):
        return f"{self.page}:{self.line}"


def snippets_of(page, text):
    """Return the blocks of a document, those in lists and quotations too."""
    fences = [(token.map[0] + 1, token.info.strip(), token.content) for token in MarkdownIt().parse(text) if token.type == "fence"]
    whole = tuple(raw for _, language, content in fences if language == "yaml" and is_whole(raw := yaml_of(content)))
    return [Snippet(page, line, language, content, whole) for line, language, content in fences]


def is_whole(raw):
    return isinstance(raw, dict) and {"name", "rasters"} <= raw.keys()


def filled(text):
    """Return a text with something in the place of each placeholder."""
    return _PLACEHOLDER.sub(lambda found: PLACEHOLDERS[found[0]], text)


def check_yaml(snippet):
    """An experiment file, or a part of one, which is then laid over the least experiment."""
    raw = yaml_of(snippet.text)
    if not isinstance(raw, dict):
        raise WrongSnippetError("holds no mapping of sections")
    build_experiment(raw if is_whole(raw) else laid_over(MINIMAL, raw))


def build_experiment(raw):
    try:
        return build(Experiment, raw)
    except ConfigError as error:
        raise WrongSnippetError(str(error)) from None


def laid_over(below, above):
    both = below.keys() & above.keys()
    inner = {key: laid_over(below[key], above[key]) for key in both if isinstance(below[key], dict) and isinstance(above[key], dict)}
    return {**below, **above, **inner}


_MODELS = {
    "positives": schema.SearchRequest,
    "searches": schema.BatchRequest,
    "features": schema.SearchAnswer,
    "answers": schema.BatchAnswer,
    "embedding": schema.Embedding,
    "detail": schema.Problem,
}
"""What a JSON object is, by a key that no other has."""


def check_json(snippet):
    """JSON; what the service takes or answers, as it does."""
    try:
        raw = json.loads(filled(snippet.text))
    except json.JSONDecodeError as error:
        raise WrongSnippetError(f"no JSON: {error}") from None
    model = next((model for key, model in _MODELS.items() if isinstance(raw, dict) and key in raw), None)
    if model is not None:
        check_body(model, raw)


def check_body(model, raw):
    try:
        model.model_validate(raw)
    except pydantic.ValidationError as error:
        raise WrongSnippetError(f"{model.__name__}: {error.errors(include_url=False, include_input=False)}") from None


def check_python(text, folder=None):
    """Python whose names are all defined and whose imports exist; with a folder, it is run there."""
    lint = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821,E9", "--output-format", "concise", "--no-cache", "-"],
        input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if lint.returncode:
        raise WrongSnippetError(lint.stdout)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                _imported(alias.name)
        elif isinstance(node, ast.ImportFrom):
            _has_names(node)
    if folder is not None:
        run = subprocess.run([sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, check=False)
        if run.returncode:
            raise WrongSnippetError(run.stderr)


def _imported(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise WrongSnippetError(str(error)) from None


def _has_names(node):
    module = _imported(node.module)
    for alias in node.names:
        if not hasattr(module, alias.name):
            _imported(f"{node.module}.{alias.name}")


_FILE = re.compile(r"\.(json|html|yaml|toml|parquet|safetensors|pt|png|md|py|faiss|vectors|tif|csv)$")
KNOWN = {key.path.replace("[]", "") for key in keys(Experiment)}
SECTIONS = {path.partition(".")[0] for path in KNOWN if "." in path}


def unknown_keys(text):
    """Return the words in code style that look like keys of the experiment file and are none."""
    words = [
        child.content
        for token in MarkdownIt().enable("table").parse(text)
        for child in token.children or ()
        if child.type == "code_inline" and re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+)+", child.content)
    ]
    named = [word for word in words if word.partition(".")[0] in SECTIONS and not _FILE.search(word)]
    return [word for word in named if word not in KNOWN and not any(path.startswith(f"{word}.") for path in KNOWN)]
