"""The whole experiment file, as the command line reads and explains it; in this process."""

from __future__ import annotations

import pytest

from rayjobs.command import parser
from rayjobs.config import keys, yaml_of
from rayjobs.errors import ConfigError
from rayjobs.experiment import Experiment, load


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text("name: small\nrasters: {sources: [{kind: images, root: pictures}]}\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--name", "two words"], "name: 'two words' cannot be a name; use letters, digits"),
        (["--name", ""], "name is empty (null): "),
        (["--workspace.run", "../escape"], "workspace.run: '../escape' cannot be a name; use letters, digits"),
        (["--model.backbone", "ResNet 18"], "model.backbone: 'ResNet 18' is no name of a timm model"),
        (["--train.epochs="], "train.epochs is empty (null): "),
        (["--rasters.sources.root", "x"], "rasters.sources is a list, and lists are given whole: --rasters.sources '[{root: ..., ...}]'"),
    ],
)
def test_a_wrong_value_is_told_in_words(file, arguments, words):
    with pytest.raises(ConfigError) as caught:
        load(file, arguments)
    assert words in str(caught.value)
    assert "pattern" not in str(caught.value)


def test_help_lists_choices_kinds_and_which_keys_are_no_options():
    text = parser("train", "learn").format_help()
    assert '--train.precision auto|fp32|bf16 ("auto")' in text
    assert "--tiles.sampler.stride (null; kind grid)" in text
    assert '--miner.kind none|hard_negative|hard_positive|hard|semi_hard|multi_similarity|distance_weighted ("semi_hard")' in text
    assert "--rasters.sources (required)" in text
    assert "    rasters.sources[].root (required; kind images)" in text
    assert "--rasters.sources[" not in text


def test_every_key_says_what_it_does():
    assert [key.path for key in keys(Experiment) if not key.description] == []


@pytest.mark.parametrize(
    ("key", "written", "read"),
    [("ray.gpu", "yes", "yes"), ("ray.gpu", "no", "no"), ("rasters.sentinel2_check", "off", "off"), ("evaluate.umap", "no", False)],
)
def test_words_that_yaml_once_took_for_booleans_are_words(file, key, written, read):
    section, _, name = key.partition(".")
    assert getattr(getattr(load(file, [f"--{key}", written]), section), name) == read


def test_every_permitted_value_can_be_written_as_help_lists_it():
    written = {choice for key in keys(Experiment) for choice in key.choices}
    plain = {"true": True, "false": False, "null": None}
    assert {choice: yaml_of(choice) for choice in written} == {choice: plain.get(choice, choice) for choice in written}


def test_paths_lead_to_the_same_files_from_any_directory(file, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = load(file, ["--model.pretrained", "runs/x/model.safetensors"])
    assert (found.workspace.uri, found.model.pretrained) == (f"{tmp_path}/here/workspace", f"{tmp_path}/here/runs/x/model.safetensors")
    remote = load(file, ["--workspace.uri", "s3://bucket/w", "--model.pretrained", "s3://bucket/model.safetensors"])
    assert (remote.workspace.uri, remote.model.pretrained) == ("s3://bucket/w", "s3://bucket/model.safetensors")
    assert load(file, ["--model.pretrained", "timm"]).model.pretrained == "timm"
