"""`rayjobs doctor` by its command line: what it checks, how it is told, and its exit codes. No Ray."""

from __future__ import annotations

import json

import pytest
import yaml

from rayjobs.config import to_dict
from rayjobs.doctor import job
from tests.unit.doctor.doctor_made import Made


@pytest.fixture
def run(tmp_path, capfd, monkeypatch):
    """Run the command; return its exit code and its two streams."""
    monkeypatch.setenv("RAYJOBS_LOG_DIR", str(tmp_path / "logs"))
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def act(*arguments):
        code = job.main(arguments)
        said = capfd.readouterr()
        return code, said.out, said.err

    return act


def families(monkeypatch, *names):
    """Leave only some families, so that a test says nothing of the machine that it runs on."""
    monkeypatch.setattr(job, "FAMILIES", {name: job.FAMILIES[name] for name in names})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--index"], "--index needs --config FILE"),
        (["--tiles.size", "3"], "--tiles needs --config FILE"),
        (["--ray.adress", "x"], "did you mean 'ray.address'?"),
        (["--config", "nowhere.yaml"], "cannot read the experiment file nowhere.yaml"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(run, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


def test_what_would_be_checked(run):
    code, out, _ = run("--dry-run", "--json")
    assert code == 0
    assert json.loads(out) == {
        "verb": "doctor",
        "would_check": {name: job.FAMILIES[name] for name in ("machine", "imagery", "tracking", "cluster")},
    }


def test_without_an_experiment_what_needs_none_is_looked_at(run):
    _, out, _ = run("--json")
    answer = json.loads(out.splitlines()[-1])
    assert answer["verb"] == "doctor"
    assert {check["name"].partition("/")[0] for check in answer["checks"]} == {"machine", "imagery", "tracking", "cluster"}
    assert all(set(check) == {"name", "state", "finding", "remedy"} for check in answer["checks"])
    assert all(bool(check["remedy"]) == (check["state"] != "ok") for check in answer["checks"])
    assert sum(answer["counts"].values()) == len(answer["checks"])


def test_an_experiment_with_its_index(run, tmp_path, monkeypatch):
    families(monkeypatch, "workspace", "tracking", "index")
    made = Made(tmp_path / "workspace")
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(to_dict(made.experiment)))
    code, out, _ = run("--config", str(path), "--index")
    assert code == 0, out
    lines = out.splitlines()
    assert any(line.startswith("ok       index/self-retrieval") for line in lines)
    assert len({line.index("workspace/") for line in lines if "workspace/" in line[:20]}) == 1
    made.damage("segment-00000.vectors")
    code, out, _ = run("--config", str(path), "--index", "made", "--json")
    assert code == 1
    answer = json.loads(out.splitlines()[-1])
    assert [check["name"] for check in answer["checks"] if check["state"] == "fault"] == ["index/digests"]
    assert answer["counts"]["fault"] == 1
    code, out, _ = run("--config", str(path), "--index", "other")
    assert code == 1
    assert "indexes/other" in out


def test_a_family_that_cannot_be_loaded_hinders_no_other(run, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "FAMILIES", {"absent": "nothing", "tracking": "MLflow"})
    code, out, _ = run("--json", "--tracking.enabled", "false")
    checks = json.loads(out.splitlines()[-1])["checks"]
    assert code == 1
    assert [(check["name"], check["state"]) for check in checks] == [("absent", "fault"), ("tracking/server", "ok")]
