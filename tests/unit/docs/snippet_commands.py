"""The command lines of the documents, each parsed as the program itself would parse it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import tomllib
from pathlib import Path

import click
import ray.scripts.scripts
import ray.serve.scripts

import benchmarks.command
from rayjobs import cli, command
from rayjobs.config import apply_overrides, parse_overrides, read_yaml
from rayjobs.errors import ConfigError
from rayjobs.index import actions
from rayjobs.query.request import check as check_query
from rayjobs.query.request import request_of
from rayjobs.serve import schema
from tests.unit.docs.snippet_requests import check_curl
from tests.unit.docs.snippets import MINIMAL, ROOT, WrongSnippetError, build_experiment, check_body, check_python, filled

_OPERATORS = set("|&;<>")


def check_bash(snippet):
    """Every line is a command that there is, with options that it has."""
    for line in lines_of(snippet.text):
        check_line(line, snippet)


def check_console(snippet):
    """A session: what follows `$` is a command, all else is what it said."""
    typed = [line[2:] for line in snippet.text.splitlines() if line.startswith("$ ")]
    if not typed:
        raise WrongSnippetError("shows no command: these begin with `$ `")
    for line in typed:
        check_line(line, snippet)


def lines_of(text):
    """Put together what a shell reads as one line: after a backslash, and within quotes."""
    held = ""
    for line in text.splitlines():
        held = f"{held}\n{line}" if held else line
        if held.endswith("\\"):
            held = held[:-1]
        elif _is_closed(held):
            yield held
            held = ""
    if held:
        raise WrongSnippetError(f"ends within quotes, or after a backslash: {held}")


def _is_closed(text):
    try:
        list(_lexer(text))
    except ValueError:
        return False
    return True


def _lexer(text):
    lexer = shlex.shlex(text, posix=True, punctuation_chars="".join(_OPERATORS))
    lexer.whitespace_split = True
    return lexer


def check_line(line, snippet):
    """Check each command of a line: those joined by `|`, `&&` and `;`, and without what they are redirected to."""
    command_words, redirected = [], False
    for word in [*_lexer(filled(line)), ";"]:
        if set(word) <= _OPERATORS and word:
            redirected = "<" in word or ">" in word
            if not redirected:
                check_command(command_words, snippet)
                command_words = []
        elif not redirected:
            command_words.append(word)


def check_command(words, snippet):
    words = list(words)
    while words and re.match(r"[A-Za-z_]\w*=", words[0]):
        words.pop(0)
    if not words:
        return
    program, *arguments = words
    if program not in PROGRAMS:
        raise WrongSnippetError(
            f"there is no rule for the program {program!r}: give it one in {Path(__file__).name}, or mark the block `text`"
        )
    with told():
        PROGRAMS[program](arguments, snippet)


@contextlib.contextmanager
def told():
    """Turn what a program says of a wrong command line into the checker's error."""
    screen = io.StringIO()
    try:
        with contextlib.redirect_stderr(screen), contextlib.redirect_stdout(screen):
            yield
    except SystemExit as left:
        if left.code:
            raise WrongSnippetError(screen.getvalue().splitlines()[-1]) from None
    except (ConfigError, click.ClickException) as error:
        raise WrongSnippetError(getattr(error, "message", str(error))) from None


def check_rayjobs(arguments, snippet):
    """Parse a command of ours, and read its experiment with the keys that it sets."""
    if not arguments or arguments[0].startswith("-"):
        return
    verb, *rest = arguments
    if verb not in cli.VERBS:
        raise WrongSnippetError(cli.unknown(verb))
    if verb == "demo":
        importlib.import_module("rayjobs.demo.job").parser().parse_args(rest)
        return
    options, overrides = _parser(verb, rest).parse_known_args(rest)
    build_experiment(apply_overrides(_experiment(options.config, snippet), parse_overrides(overrides)))
    if verb == "query":
        _check_query(options)


def _parser(verb, rest):
    """Return a verb's parser, or that of the action that the first of its arguments names, which is then taken off."""
    if verb == "index" and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in actions.ACTIONS:
            raise WrongSnippetError(actions.unknown(name))
        made = command.parser(f"index {name}", "")
        importlib.import_module(actions.ACTIONS[name]).add_options(made)
        return made
    job = importlib.import_module(f"rayjobs.{cli.PACKAGES.get(verb, verb)}.job")
    return job.parser() if hasattr(job, "parser") else command.parser(verb, "")


def _experiment(config, snippet):
    """Return the experiment that a command names: one of ours, one that stands on the same page, or a reader's own."""
    for raw in snippet.experiments:
        if config == f"{raw['name']}.yaml":
            return raw
    if "/" in config and not config.startswith("/"):
        return read_yaml(ROOT / config)
    return MINIMAL


def _check_query(options):
    """Check what is asked for, but for the files, which are the reader's."""
    options.image = options.intersects = None
    check_query(options)
    request = request_of(options)
    if "positives" in request:
        check_body(schema.SearchRequest, request)


def check_python_line(arguments, snippet):
    match arguments:
        case ["-m", module, *rest] if module.startswith("rayjobs."):
            check_rayjobs([module.removeprefix("rayjobs."), *rest], snippet)
        case ["-m", module, *rest]:
            if importlib.util.find_spec(module.partition(".")[0]) is None or importlib.util.find_spec(module) is None:
                raise WrongSnippetError(f"there is no module {module}")
            if module.startswith("benchmarks."):
                _check_benchmark(module, rest)
        case ["-c", code]:
            check_python(code)
        case _:
            raise WrongSnippetError("python is called with neither `-m MODULE` nor `-c CODE`")


def _check_benchmark(module, arguments):
    """Each option is one that all benchmarks have, or stands in the benchmark's own code."""
    own = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    _, left = benchmarks.command.parser(module, "", quick="").parse_known_args(arguments)
    for option in left:
        if option.startswith("-") and f'"{option}"' not in own:
            raise WrongSnippetError(f"{module} has no option {option}")


def check_make(arguments, _):
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", text, re.MULTILINE))
    variables = set(re.findall(r"^(\w+) +\?=", text, re.MULTILINE))
    for word in arguments:
        name, equals, _ = word.partition("=")
        if name not in (variables if equals else targets):
            raise WrongSnippetError(f"the Makefile has no {'variable' if equals else 'target'} {name}")


def check_ray(arguments, snippet):
    own, separator, submitted = _divided(arguments, "--")
    _check_click(ray.scripts.scripts.cli, [*own, *([separator, *submitted] if separator else [])])
    if separator:
        check_command(submitted, snippet)


def _divided(words, at):
    place = words.index(at) if at in words else len(words)
    return words[:place], at if place < len(words) else "", words[place + 1 :]


def _check_click(program, arguments):
    """Let a click program parse a command line, without running it; files of ours that it names must exist."""
    context = click.Context(program)
    while isinstance(program, click.Group):
        if not arguments:
            raise WrongSnippetError(f"{program.name} is called without a command")
        name, *arguments = arguments
        found = program.get_command(context, name)
        if found is None:
            raise WrongSnippetError(f"{program.name} has no command {name}")
        program = found
    program.make_context(program.name, list(arguments))
    for word in arguments:
        if word.endswith(".yaml") and not word.startswith("/") and not (ROOT / word).is_file() and "rayjobs." not in " ".join(arguments):
            raise WrongSnippetError(f"there is no file {word}")


def check_serve(arguments, _):
    _check_click(ray.serve.scripts.cli, arguments)
    for word in arguments:
        if re.fullmatch(r"[\w.]+:\w+", word):
            module, _, name = word.partition(":")
            check_python(f"from {module} import {name}")


def check_pip(arguments, _):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in re.findall(r"rayjobs\[([\w,-]+)\]", " ".join(arguments)):
        absent = set(extra.split(",")) - project["optional-dependencies"].keys()
        if absent:
            raise WrongSnippetError(f"rayjobs has no extra {', '.join(sorted(absent))}")


def taken_at_their_word(_arguments, _snippet):
    """What belongs to others, and is not looked into."""


PROGRAMS = {
    "rayjobs": check_rayjobs,
    "python": check_python_line,
    "make": check_make,
    "ray": check_ray,
    "serve": check_serve,
    "curl": check_curl,
    "pip": check_pip,
    **dict.fromkeys(("aws", "cd", "cp", "export", "head", "jq", "ls", "mkdir", "ogr2ogr", "source", "tensorboard"), taken_at_their_word),
}
"""What checks a command line, by its program."""
