"""The checker of code blocks finds what is wrong: each of its rules refuses a block that breaks it, and lets one pass that does not."""

from __future__ import annotations

import pytest

from tests.unit.docs.snippet_commands import check_bash, check_console, lines_of
from tests.unit.docs.snippets import Snippet, WrongSnippetError, check_json, check_python, check_yaml, filled, snippets_of, unknown_keys

CONFIG = "--config configs/landsat-tile2vec.yaml"
SEARCH = "curl -s localhost:8000/v1/search -H 'content-type: application/json' -d"
COAST = {"name": "coast", "rasters": {"sources": [{"kind": "files", "uris": ["a"]}]}, "loss": {"kind": "supcon"}}


def block(text, language="bash", experiments=()):
    return Snippet("page.md", 1, language, text, experiments)


RIGHT_LINES = [
    f"rayjobs train {CONFIG} --train.epochs 3 --loss '{{kind: triplet, margin: 0.3}}' --dry-run",
    "rayjobs train --config coast.yaml --loss.temperature 0.2",
    "rayjobs query --config FILE --point LON LAT --limit 5 && rayjobs VERB --help",
    "rayjobs index delete --config FILE --bbox W S E N | head -3 > told.txt",
    "RAYJOBS_TOKEN=TOKEN python -m rayjobs.serve --config FILE --serve.port 9000",
    "ray job submit --working-dir . -- python -m rayjobs.train --config FILE --train.num_workers 4",
    "ray start --head  # on one machine",
    "ray up cluster.yaml",
    "serve run rayjobs.serve.app:build_app workspace=s3://BUCKET/PREFIX index=NAME",
    "make demo SERVE=1",
    "pip install 'rayjobs[umap]'",
    "python -m benchmarks.search --json --quick",
    "python -m benchmarks.periodic_mining --task AID",
    'python -c "from rayjobs.serve import haproxy; print(haproxy.COMMAND)"',
    f'{SEARCH} \'{{"positives": [{{"embedding": [0.1, -0.2, ...]}}]}}\'',
    "curl -s localhost:8000/v1/search/image -F image=@chip.tif -F limit=5",
    "curl -s 'http://HOST:PORT/v1/tiles?bbox=WEST,SOUTH,EAST,NORTH&limit=3' -o tiles.json",
    "curl -s localhost:8265/api/version",
]


@pytest.mark.parametrize("line", RIGHT_LINES)
def test_a_right_line_passes(line):
    check_bash(block(line, experiments=(COAST,)))


WRONG_LINES = [
    ("rayjobs tran --config FILE", "no verb 'tran'"),
    (f"rayjobs train {CONFIG} --train.epoch 3", r"did you mean 'train\.epochs'"),
    (f"rayjobs train {CONFIG} --train.epochs many", "train.epochs"),
    ("rayjobs train --config coast.yaml --loss.margin 0.2", "loss.margin"),
    ("rayjobs train --config configs/landsat-tile2vek.yaml", "cannot read the experiment file"),
    ("rayjobs train --train.epochs 3", "--config"),
    ("rayjobs index apend --config FILE", "did you mean 'append'"),
    ("rayjobs index delete --config FILE", "required"),
    ("rayjobs query --config FILE --limit 5", "required"),
    ("rayjobs query --config FILE --tile nothing", "no tile id"),
    ("rayjobs query --config FILE --point LON", "expected 2 arguments"),
    ("rayjobs query --config FILE --tile TILE_ID --threshold 3", "threshold"),
    ("rayjobs demo --foldre demo2", "unrecognized"),
    ("python -m rayjobs.sampel --config FILE", "no verb 'sampel'"),
    ("python -m benchmarks.serch --json", "no module"),
    ("python -m benchmarks.search --qick", "no option --qick"),
    ("python script.py", "neither"),
    ('python -c "from rayjobs.serve import haproksy"', "haproksy"),
    ("ray job submit --working-dir . -- python -m rayjobs.train --config FILE --trian.epochs 2", "trian"),
    ("ray job sumbit -- ls", "sumbit"),
    ("ray start --haed", "--haed"),
    ("ray up clusters.yaml", "no file clusters.yaml"),
    ("serve run rayjobs.serve.app:build_apps", "build_apps"),
    ("make demos", "target demos"),
    ("make demo SERV=1", "variable SERV"),
    ("pip install 'rayjobs[umaps]'", "umaps"),
    ("frobnicate --all", "no rule for the program"),
    ("rayjobs sample --config FILE | frobnicate", "no rule for the program"),
    ("make demo && make demos", "target demos"),
    ("make demo \\\n  demos", "target demos"),
    ("make 'demo", "ends within quotes"),
    ("curl -s localhost:8000/v1/serch", "no path /v1/serch"),
    ("curl -s https://tiles.example.org/v1/serch", "no path /v1/serch"),
    ("curl -s localhost:8000/v1/search", "takes no GET"),
    ("curl -s 'localhost:8000/v1/tiles?box=1,2,3,4'", "query parameter box"),
    ("curl -s localhost:8000/v1/search -d '{}'", "content-type"),
    ("curl -s localhost:8000/v1/embed -H 'content-type: application/json' -d '{}'", "JSON is sent where none is taken"),
    ("curl -s -X POST localhost:8000/v1/search", "nothing is sent"),
    (f"{SEARCH} '{{'", "no JSON"),
    (f"{SEARCH} '{{\"positives\": []}}'", "positives"),
    (f'{SEARCH} \'{{"positive": [{{"tile_id": "TILE_ID"}}]}}\'', "positive"),
    ("curl -s localhost:8000/v1/search -F image=@chip.tif", "form is sent where none is taken"),
    ("curl -s localhost:8000/v1/search/image -F picture=@chip.tif", "no picture"),
    ("curl -s localhost:8000/v1/search/image -F limit=5", "lacks image"),
    ("curl --frobnicate localhost:8000/v1/info", "frobnicate"),
]


@pytest.mark.parametrize(("line", "why"), WRONG_LINES)
def test_a_wrong_line_is_refused(line, why):
    with pytest.raises(WrongSnippetError, match=why):
        check_bash(block(line, experiments=(COAST,)))


def test_a_session_is_read_by_its_prompts():
    check_console(block("$ make demo\nmake demos is what this says\n"))
    with pytest.raises(WrongSnippetError, match="demos"):
        check_console(block("$ make demos\n"))
    with pytest.raises(WrongSnippetError, match="no command"):
        check_console(block("make demo\n"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("trian: {epochs: 3}", "did you mean 'train"),
        ("train: {epochs: -3}", "train.epochs"),
        ("loss: {kind: triplets}", "loss"),
        ("name: a\nrasters: {source: []}", "rasters.source"),
        ("- a\n- b", "no mapping"),
    ],
)
def test_wrong_yaml_is_refused(text, why):
    with pytest.raises(WrongSnippetError, match=why):
        check_yaml(block(text))


def test_a_part_of_an_experiment_is_laid_over_the_least_one():
    check_yaml(block("rasters: {bands: [red]}\nloss: {kind: supcon}"))
    check_yaml(block("name: coast\nrasters: {sources: [{kind: images, root: pictures}]}"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"positives": 3}', "SearchRequest"),
        ('{"features": [{"id": 3}]}', "SearchAnswer"),
        ('{"status": 400, "detail": 7}', "Problem"),
        ("{", "no JSON"),
    ],
)
def test_wrong_json_is_refused(text, why):
    check_json(block('{"level": "INFO"}'))
    with pytest.raises(WrongSnippetError, match=why):
        check_json(block(text))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("print(vectors)", "vectors"),
        ("def f(:", "invalid-syntax|Expected"),
        ("import rayjobs.nothing", "rayjobs.nothing"),
        ("from rayjobs.config import kees", "kees"),
        ("open('nothing.json')", "nothing.json"),
    ],
)
def test_wrong_python_is_refused(text, why, tmp_path):
    check_python("from pathlib import Path\nprint(Path.cwd())", tmp_path)
    with pytest.raises(WrongSnippetError, match=why):
        check_python(text, tmp_path)


def test_blocks_are_found_wherever_they_stand():
    page = "# A\n\n```bash\nmake demo\n```\n\n- one:\n\n  ```yaml\n  name: coast\n  rasters: {}\n  ```\n\n> ```\n> bare\n> ```\n"
    assert [(one.line, one.language, one.text) for one in snippets_of("page.md", page)] == [
        (3, "bash", "make demo\n"),
        (9, "yaml", "name: coast\nrasters: {}\n"),
        (14, "", "bare\n"),
    ]
    assert snippets_of("page.md", page)[0].experiments == ({"name": "coast", "rasters": {}},)


def test_a_line_ends_where_the_shell_says_so():
    assert list(lines_of("a 'b\nc' d\ne \\\n  f\n# it's a comment\ng")) == ["a 'b\nc' d", "e \n  f", "# it's a comment", "g"]


def test_placeholders_are_filled_where_they_are_words():
    assert filled("--point LON LAT of TILE_ID") == "--point -55.2 -25.6 of 0123456789abcdef0123"
    assert filled("RAYJOBS_TOKEN SAMPLE $HOST --tiles.LON") == "RAYJOBS_TOKEN SAMPLE $HOST --tiles.LON"


def test_keys_in_code_style_are_known_or_told():
    page = "`train.epochs`, `tiles.sampler`, `model.json`, `train.epoch` | a table:\n\n| key |\n|---|\n| `loss.margins` |\n"
    assert unknown_keys(page) == ["train.epoch", "loss.margins"]
