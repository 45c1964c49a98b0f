"""What the documents for operators name is there: files, modules, commands with their options, variables, keys."""

from __future__ import annotations

import configparser
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import ray.scripts.scripts as of_ray
from ray.serve.scripts import cli as of_serve

from rayjobs import __version__, command
from rayjobs.config import keys
from rayjobs.experiment import Experiment, load

ROOT = Path(__file__).parents[3]
PAGES = {name: (ROOT / name).read_text() for name in ("docs/operations.md", "docs/security.md", "deploy/README.md")}
FENCED = {name: "\n".join(re.findall(r"^ *```\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)) for name, text in PAGES.items()}
QUOTED = {name: re.findall(r"`([^`\n]+)`", text) for name, text in PAGES.items()}
WRITTEN = sorted(
    {line.strip() for text in FENCED.values() for line in text.splitlines()} | {one for found in QUOTED.values() for one in found}
)
COMMANDS = [line for line in WRITTEN if re.match(r"(\w+=\S+ )*(ray|serve) [a-z]", line)]
SYSTEMD = (ROOT / "deploy/ray-head.service").read_text()


def understood(line, program):
    """Have the program's own command line read a command."""
    words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Za-z_]+=", word)][1:]
    context = click.Context(program)
    while isinstance(program, click.Group):
        name, found, words = program.resolve_command(context, words)
        context, program = click.Context(found, info_name=name, parent=context), found
    program.make_parser(context).parse_args(list(words))


@pytest.mark.parametrize("line", COMMANDS)
def test_ray_understands_every_command(line):
    understood(line, of_serve if line.startswith("serve ") else of_ray.cli)


def test_commands_are_found_and_wrong_ones_refused():
    assert len(COMMANDS) > 15
    for wrong in ("ray get-auth-tokens", "ray start --heads", "ray job submit --workdir ."):
        with pytest.raises(click.UsageError):
            understood(wrong, of_ray.cli)


@pytest.mark.parametrize("line", [line for line in COMMANDS if "rayjobs.train" in line])
def test_submitted_commands_are_ours(line):
    arguments = shlex.split(line, comments=True)
    ours = arguments[arguments.index("rayjobs.train") + 1 :]
    options, overrides = command.parser("train", "").parse_known_args(ours)
    assert options.config.startswith("configs/") == ("--working-dir ." in line)
    if options.config.startswith("configs/"):
        load(ROOT / options.config, overrides)


def test_the_wheel_has_its_name():
    name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
    assert f"dist/{name}-{__version__}-py3-none-any.whl" in PAGES["docs/operations.md"]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGES[name])
    assert links
    assert not [link for link in links if not (ROOT / name).parent.joinpath(link).exists()]


def test_named_modules_exist():
    named = {one for one in QUOTED["docs/security.md"] if re.fullmatch(r"(?!tests/)[a-z_]+(/[a-z_]+)*\.py", one)}
    assert len(named) > 15
    assert not [one for one in named if not (ROOT / "rayjobs" / one).is_file()]


@pytest.mark.parametrize("name", PAGES)
def test_named_files_exist(name):
    named = {
        one for one in QUOTED[name] if re.fullmatch(r"(deploy|tests|configs|docs)/[\w./-]+|cluster\.yaml|\.dockerignore|\.rayignore", one)
    }
    assert named
    assert not [one for one in named if not (ROOT / one).exists()]


@pytest.mark.parametrize("name", PAGES)
def test_named_keys_exist(name):
    known = {key.path for key in keys(Experiment)}
    rooms = {path.partition(".")[0] for path in known}
    named = {one.partition(":")[0] for one in QUOTED[name] if re.match(r"[a-z]+\.[a-z_.]+(: |$)", one)}
    assert {one for one in named if one.partition(".")[0] in rooms and not one.endswith((".py", ".db"))} <= known


def test_systemd_starts_a_head_that_keeps_what_it_knows():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string(SYSTEMD)
    started = unit["Service"]["ExecStart"].split()
    understood(" ".join(["ray", *started[1:]]), of_ray.cli)
    assert started[1:4] == ["start", "--head", "--block"]
    assert "--dashboard-host=127.0.0.1" in started
    assert unit["Service"]["Restart"] == "always"
    variables = dict(line.removeprefix("Environment=").split("=", 1) for line in SYSTEMD.splitlines() if line.startswith("Environment="))
    assert variables["RAY_AUTH_MODE"] == "token"
    assert variables["RAY_gcs_storage"] == "rocksdb"
    assert Path(started[0]).parent == Path(variables["PATH"].split(":")[0])
