"""The actions of `rayjobs index` by their command lines: what they say, what they refuse, what they leave alone. No Ray."""

from __future__ import annotations

import json
import re
import typing

import pytest
import shapely.geometry
import yaml

from rayjobs.config import to_dict
from rayjobs.index import actions
from rayjobs.index.section import IndexSection
from rayjobs.retrieval.kinds import KINDS
from tests.unit.index.index_made import Made, place_of, searcher, tile_id


@pytest.fixture
def made(tmp_path):
    index = Made(f"file:{tmp_path}/workspace")
    index.build(range(100))
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(to_dict(index.experiment)))
    return index


@pytest.fixture
def run(made, tmp_path, capfd, monkeypatch):
    """Run an action; return its exit code, its JSON and what it said."""
    monkeypatch.setenv("RAYJOBS_LOG_DIR", str(tmp_path / "logs"))

    def act(name, *arguments):
        code = actions.main([name, "--config", str(tmp_path / "experiment.yaml"), "--json", *map(str, arguments)])
        said = capfd.readouterr()
        lines = said.out.strip().splitlines()
        return code, json.loads(lines[-1]) if lines else None, said.err

    return act


def test_the_kinds_of_the_section_are_those_that_there_are():
    assert set(typing.get_args(typing.get_type_hints(IndexSection)["kind"])) == {"auto", *KINDS}


def test_an_action_that_there_is_not_is_named_with_the_nearest(capsys):
    assert actions.main(["rolback"]) == 2
    assert "there is no action 'rolback'; did you mean 'rollback'?" in capsys.readouterr().err
    assert actions.main(["x"]) == 2
    assert "there are append, delete, compact, rollback, list, report" in capsys.readouterr().err


@pytest.mark.parametrize("name", actions.ACTIONS)
def test_every_action_tells_what_it_does(name, capsys):
    with pytest.raises(SystemExit) as ended:
        actions.main([name, "--help"])
    assert ended.value.code == 0
    assert f"rayjobs index {name}" in capsys.readouterr().out


def test_tiles_are_deleted_by_id(run, made, tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text(f"{tile_id(3)}\n\n{tile_id(4)}\n{tile_id(777)}\n{tile_id(3)}\n")
    code, plan, _ = run("delete", "--ids", path, "--dry-run")
    assert (code, plan["would_delete"], plan["unknown"], made.current().manifest.deleted) == (0, 2, 1, 0)
    code, result, said = run("delete", "--ids", path)
    assert (code, result["action"], result["fresh"], result["rows"], result["deleted"]) == (0, "delete", True, 98, 2)
    assert result["told"] == {"deleted_now": 2, "deleted_before": 0, "unknown": 1}
    assert f"1 ids are not in the index, and left alone: {tile_id(777)}" in said
    code, again, said = run("delete", "--ids", path)
    assert (code, again["fresh"], again["version"], again["told"]["deleted_before"]) == (0, False, result["version"], 2)
    assert "all these tiles were deleted before" in said


def test_tiles_are_deleted_by_area_box_and_scene(run, made, tmp_path):
    area = tmp_path / "area.geojson"
    shapes = [place_of(number).buffer(-0.01) for number in (5, 6)]
    features = [{"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(shape)} for shape in shapes]
    area.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    assert run("delete", "--area", area)[1]["told"]["deleted_now"] == 2
    west, south, east, north = place_of(10).bounds
    assert run("delete", "--bbox", west, south, east, north)[1]["told"]["deleted_now"] == 1
    _, result, _ = run("delete", "--scene", "scene-001", "scene-002")
    assert result["told"] == {"deleted_now": 19, "deleted_before": 1, "unknown": 0}
    assert set(made.current().tombstones) == set(map(tile_id, [5, 6, *range(10, 30)]))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--ids", "none.txt"], "--ids none.txt: cannot be read"),
        (["--ids", "bad.txt"], "line 2, 'xyz' is no tile id"),
        (["--ids", "empty.txt"], "names no tile; write one id a line"),
        (["--ids", "strange.txt"], "holds no tile of those that strange.txt names; nothing was deleted"),
        (["--area", "bad.txt"], "--area bad.txt: is no GeoJSON of polygons"),
        (["--area", "point.geojson"], "a Point has no area"),
        (["--area", "bow.geojson"], "--area bow.geojson: its polygons are not valid (Self-intersection"),
        (["--bbox", "0", "10", "0", "-10"], "has its south 10.0 above its north -10.0"),
        (["--bbox", "0", "80", "1", "81"], "holds no tile that meets the box"),
        (["--scene", "nowhere"], "holds no tile of scene nowhere"),
    ],
    ids=str,
)
def test_what_cannot_be_deleted_is_named_with_the_remedy(run, made, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.txt").write_text(f"{tile_id(1)}\nxyz\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "strange.txt").write_text(f"{tile_id(1000)}\n")
    (tmp_path / "point.geojson").write_text('{"type": "Point", "coordinates": [0, 0]}')
    (tmp_path / "bow.geojson").write_text('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}')
    code, result, said = run("delete", *arguments)
    assert code in {1, 2}
    assert result is None
    assert told in said
    assert "Traceback" not in said
    assert made.current().manifest.deleted == 0


def test_one_way_to_say_which_tiles(run):
    with pytest.raises(SystemExit) as ended:
        run("delete", "--scene", "a", "--bbox", 0, 0, 1, 1)
    assert ended.value.code == 2


def test_versions_are_listed_and_gone_back_to(run, made):
    built = made.current().version.version
    made.delete([1])
    deleted = made.current().version.version
    _, listed, _ = run("list")
    assert listed["current"] == deleted
    assert [(entry["action"], entry["rows"], entry["deleted"], entry["current"]) for entry in listed["versions"]] == [
        ("build", 100, 0, False),
        ("delete", 99, 1, True),
    ]
    _, plan, _ = run("rollback", "--dry-run")
    assert (plan["current"], plan["would_be_current"], plan["rows"]) == (deleted, built, 100)
    assert made.current().version.version == deleted
    _, result, _ = run("rollback")
    assert (result["version"], result["rows"], result["fresh"], result["told"]) == (built, 100, True, {"before": deleted})
    assert searcher(made.current()).rows == 100
    _, result, _ = run("rollback", "--to", deleted[:6])
    assert (result["version"], made.current().version.version) == (deleted, deleted)
    assert not run("rollback", "--to", deleted)[1]["fresh"]


def test_versions_that_cannot_be_gone_back_to(run, made):
    built = made.current()
    code, _, said = run("rollback")
    assert (code, "has no version before the current one" in said) == (1, True)
    code, _, said = run("rollback", "--to", "zzz")
    assert (code, "--to zzz: is no version of index made; there are " in said) == (2, True)
    made.delete([1])
    made.store.delete(built.version.key("segment-00000.vectors"))
    code, _, said = run("rollback", "--to", built.version.version)
    assert (code, "choose another version" in said) == (1, True)
    assert made.current().manifest.deleted == 1


def test_a_damaged_version_is_listed_as_such(run, made):
    made.delete([1])
    first = made.index.finished()[0]
    made.store.write(f"{made.index.prefix}{first}/manifest.json", b"{")
    listed = run("list")[1]["versions"]
    assert [bool(entry["damaged"]) for entry in listed].count(True) == 1


def test_nothing_to_compact_is_said_and_changes_nothing(run, made):
    _, result, said = run("compact")
    assert (result["fresh"], result["version"]) == (False, made.current().version.version)
    assert "it is compact already" in said
    made.delete(range(7))
    _, plan, _ = run("compact", "--dry-run")
    assert (plan["rows_written"], plan["deleted_taken_out"]) == (73, 7)


def test_without_an_index_the_command_that_makes_one_is_named(run):
    for name in actions.ACTIONS:
        more = ["--scene", "a"] if name == "delete" else []
        code, _, said = run(name, "--workspace.index", "other", *more)
        assert code == 1, name
        assert re.search("run `rayjobs (index|train)` first", said), name


def test_kinds_are_compared_on_the_index_s_own_vectors(run, made, tmp_path):
    made.append(range(700))
    code, plan, _ = run("report", "--rows", 400, "--dry-run")
    assert (code, plan["rows"], plan["queries"]) == (0, 400, 70)
    assert set(plan["kinds"]) == {name for name, kind in KINDS.items() if kind.store == "flat"}
    code, report, said = run("report", "--rows", 400, "--kinds", "flat", "sq8", "ivf_flat")
    assert code == 0, said
    assert [entry["kind"] for entry in report["kinds"]] == ["flat", "sq8", "ivf_flat"]
    flat, sq8, _ = report["kinds"]
    assert (flat["recall"], flat["bytes_per_vector"], flat["mapped_bytes_per_vector"]) == (1.0, 0.0, 64.0)
    assert 16 <= sq8["bytes_per_vector"] < 40
    assert all(entry["recall"] > 0.9 and entry["queries_per_second"] > 0 for entry in report["kinds"])
    assert "400 of 700 vectors, drawn from 8 of 10 segments; 70 other ones are searched for" in report["sample"]
    published = made.workspace.index_report.current()
    assert published.read("report.png").startswith(b"\x89PNG")
    assert "| ivf_flat |" in published.read("report.md").decode()
    assert run("report", "--rows", 400, "--kinds", "flat", "sq8", "ivf_flat")[1]["kinds"] == report["kinds"], "measured once"
    code, _, said = run("report", "--kinds", "flat", "hamming")
    assert (code, "--kinds hamming: the vectors of this index are no codes" in said) == (2, True)
    code, _, said = run("report", "--queries", 340)
    assert (code, "ask for fewer queries" in said) == (2, True)


def test_vectors_of_another_encoder_are_not_appended(made):
    from rayjobs.errors import FingerprintError
    from rayjobs.index.append import check_encoder

    check_encoder(made.current(), made.current().manifest.encoder_fingerprint)
    with pytest.raises(FingerprintError, match="their vectors cannot be compared; build anew with `rayjobs index`"):
        check_encoder(made.current(), "f" * 64)


def test_a_finished_build_stands_and_one_of_before_is_taken_up_again(made):
    from rayjobs.index.job import standing

    built = made.current().version.version
    made.delete([1])
    assert standing(made.index, built, made.console).version.version == made.current().version.version
    assert f"`rayjobs index rollback --to {built}` goes back" in made.screen.getvalue()
    other = made.build(range(50)).version.version
    assert standing(made.index, built, made.console).version.version == built
    assert standing(made.index, other, made.console).version.version == other
    assert standing(made.index, "0" * 16, made.console) is None
