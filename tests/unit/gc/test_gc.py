"""`rayjobs gc` on a workspace with an index that has lived, sets that others name, and a run."""

from __future__ import annotations

import errno
import json
import os

import pytest
import yaml

from rayjobs.gc import job
from rayjobs.storage import Artefact, Lease, removal
from tests.unit.index.index_made import Made, answers

QUERIES = range(0, 100, 9)


class Workspace:
    """A workspace, its experiment file, and the command on it."""

    def __init__(self, folder, capfd):
        self.made = Made(f"file:{folder}/workspace")
        self.store, self._capfd = self.made.store, capfd
        self.path = folder / "experiment.yaml"
        raw = {"name": "made", "workspace": {"uri": self.store.uri}, "rasters": {"sources": [{"kind": "images", "root": "x"}]}}
        self.path.write_text(yaml.safe_dump(raw))

    def publish(self, kind, name, version, **parents):
        draft = Artefact(self.store, kind, name).draft(version)
        draft.write("data", version.encode() * 100)
        return draft.publish({"parents": parents})

    def age(self, begin="", created="2020-01-01T00:00:00+00:00"):
        """Make versions look old."""
        for key in self.store.list(begin):
            if key.endswith("/manifest.json"):
                said = json.loads(self.store.read(key))
                self.store.write(key, json.dumps({**said, "created": created}).encode())

    def gc(self, *arguments):
        """Return the exit code, the result and what was said."""
        self._capfd.readouterr()
        code = job.main(["--config", str(self.path), "--json", *arguments])
        out, err = self._capfd.readouterr()
        return code, json.loads(out.splitlines()[-1]) if out.strip() else None, err

    def finished(self, kind, name):
        return Artefact(self.store, kind, name).finished()


@pytest.fixture
def workspace(tmp_path, capfd):
    return Workspace(tmp_path, capfd)


@pytest.fixture
def lived(workspace):
    """An index of five versions, whose tiles come from two of five sets; another set is a run's."""
    for number in range(1, 6):
        workspace.publish("sets", "made", f"s{number}")
    workspace.publish("runs/made", "checkpoints", "000001", set="s3")
    made = workspace.made
    workspace.versions = [made.build(range(100)), made.append(range(150), of_set="made/s2"), made.delete(range(10)), made.delete([20])]
    workspace.versions.append(made.compact())
    workspace.age()
    return workspace


def test_what_something_names_is_kept(lived, tmp_path):
    before = answers(lived.versions[-1], QUERIES, tmp_path)
    files = set(lived.store.list())
    code, planned, _ = lived.gc("--dry-run")
    assert code == 0
    assert set(lived.store.list()) == files, "a plan changes nothing"
    code, done, _ = lived.gc()
    assert code == 0
    *old, parent, current = [one.version.version for one in lived.versions]
    # the fourth set is neither a run's nor of a tile of the index; the fifth is current
    assert lived.finished("sets", "made") == ["s1", "s2", "s3", "s5"]
    assert lived.finished("indexes", "made") == sorted([parent, current])
    assert lived.finished("runs/made", "checkpoints") == ["000001"]
    gone = sorted(["sets/made/s4", *(f"indexes/made/{version}" for version in old)])
    assert sorted(planned["would_remove"]) == gone
    assert (done["removed"], done["bytes"], done["kept"]) == (len(gone), planned["bytes"], len(planned["keeps"]))
    assert planned["keeps"]["sets/made/s3"] == "named by runs/made/checkpoints/000001"
    assert planned["keeps"][f"indexes/made/{current}"] == "current"
    assert planned["keeps"]["sets/made/s5"] == "current"
    assert done["bytes"] > 0
    assert lived.made.current().version.damage() is None
    assert answers(lived.made.current(), QUERIES, tmp_path) == before
    lived.age(f"indexes/made/{current}", created="2021-01-01T00:00:00+00:00")
    assert lived.made.index.go_back(parent).damage() is None
    assert lived.gc()[1]["removed"] == 0, "what was gone back from was the newest"


def test_the_young_are_kept_with_what_they_name_and_the_one_before_them(lived):
    for number in range(1, 4):
        lived.publish("embeddings", "other", f"e{number}", set="made/s4")
        lived.age("embeddings/other", created=f"2021-01-0{number}T00:00:00+00:00")
    lived.publish("embeddings", "other", "e4", set="made/s5")
    lived.publish("embeddings", "other", "e5", set="made/s5")
    lived.age("embeddings/other/e1", created="2021-01-09T00:00:00+00:00")
    code, planned, _ = lived.gc("--dry-run")
    assert code == 0
    assert planned["keeps"]["sets/made/s4"] == "named by embeddings/other/e1"
    assert lived.gc()[0] == 0
    # the first is the newest of the old ones
    assert lived.finished("embeddings", "other") == ["e1", "e4", "e5"]
    assert "s4" in lived.finished("sets", "made")
    lived.gc("--older-than", "0")
    assert lived.finished("embeddings", "other") == ["e5"]
    assert "s4" not in lived.finished("sets", "made")


@pytest.mark.parametrize("key", ["runs/other/experiment.yaml", "sweeps/made/experiment.yaml"])
def test_what_a_run_or_a_sweep_was_begun_with_is_kept(lived, key):
    lived.store.write(key, yaml.safe_dump({"decided": {"set_version": "s5", "target_version": "s4"}}).encode())
    code, planned, _ = lived.gc("--dry-run")
    assert code == 0
    assert planned["keeps"]["sets/made/s4"] == f"named by {key.rpartition('/')[0]}"


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b"\xff\xfe {", b"decided: [", b"- s4"])
def test_what_a_run_was_begun_with_and_cannot_be_read_stops_it(lived, damage):
    lived.store.write("runs/other/experiment.yaml", damage)
    code, _, said = lived.gc()
    assert code == 1
    assert "runs/other/experiment.yaml cannot be read, and nobody knows what it names" in said
    assert "s4" in lived.finished("sets", "made")


@pytest.mark.parametrize("linked", ["runs", "runs/made", "indexes", "indexes/made"])
def test_what_lies_behind_links_counts(lived, tmp_path, linked):
    there, aside = tmp_path / "workspace" / linked, tmp_path / "aside"
    there.rename(aside)
    there.symlink_to(aside)
    (aside / "round").symlink_to(tmp_path / "workspace")
    code, planned, _ = lived.gc("--dry-run")
    assert code == 0
    assert [name for name in planned["would_remove"] if name.startswith("sets/")] == ["sets/made/s4"]
    assert lived.gc()[0] == 0
    assert lived.made.current().version.damage() is None


def test_a_folder_that_cannot_be_looked_into_stops_it(lived, monkeypatch):
    walk = os.walk

    def refused(start, onerror, **rest):
        yield from walk(start, onerror=onerror, **rest)
        onerror(PermissionError(errno.EACCES, "Permission denied", f"{start}/runs"))

    monkeypatch.setattr(os, "walk", refused)
    code, _, said = lived.gc()
    assert code == 1
    assert "runs: Permission denied" in said
    monkeypatch.undo()
    assert "s4" in lived.finished("sets", "made")


@pytest.mark.parametrize(
    "lease",
    [
        b"",
        b"{}",
        b"[]",
        b'{"expires": "x"}',
        b'{"expires": 1.0, "host": "a", "pid": "1", "id": "b"}',
        b'{"expires": 1e300, "host": "a", "pid": 1, "id": "b", "started": 1}',
        b'{"expires": 1.0, "host": "a", "pid": 1, "id": "b"}',
    ],
)
def test_what_is_no_lease_is_named(lived, lease):
    lived.store.write("runs/made/lease", lease)
    code, _, said = lived.gc()
    assert code == 1
    assert "runs/made/lease is no lease; remove it if nothing is being written there" in said
    lived.store.delete("runs/made/lease")
    lived.store.write("imagery/made/v1/lease", b"a file of that name")
    assert lived.gc()[0] == 0


def test_a_person_sees_every_version_in_a_line(lived, capfd):
    assert job.main(["--config", str(lived.path), "--dry-run"]) == 0
    lines = capfd.readouterr().out.splitlines()
    current = lived.versions[-1].version.version
    assert "would be removed" in next(line for line in lines if line.startswith("sets/made/s4 "))
    assert "stays: current" in next(line for line in lines if line.startswith(f"indexes/made/{current}"))
    assert sum("stays: " in line or "would be removed" in line for line in lines) == len(lived.versions) + 5 + len(
        lived.finished("embeddings", "made") + lived.finished("embeddings", "made-appended")
    )


@pytest.mark.parametrize("version", ["é1", "b c", "ü"])
def test_a_version_of_an_unusual_name_is_found_or_kept(lived, version):
    lived.publish("sets", "made", version)
    lived.publish("sets", "made", "s6")
    lived.publish("embeddings", "other", "e1", set=f"made/{version}")
    lived.age()
    assert lived.gc()[0] == 0
    assert version in lived.finished("sets", "made")


def test_a_checkpoint_that_is_not_current_yet_names_its_set(lived):
    lived.publish("runs/killed", "checkpoints", "epoch-0001", set="s4")
    lived.store.delete("runs/killed/checkpoints/CURRENT")
    assert lived.gc()[0] == 0
    assert "s4" in lived.finished("sets", "made")


def test_versions_can_be_kept_by_name(lived):
    first = lived.versions[0].version.version
    assert lived.gc("--keep", "s4", "--keep", first)[0] == 0
    assert "s4" in lived.finished("sets", "made")
    assert first in lived.finished("indexes", "made")
    assert lived.gc("--keep", "sets/made/s4", "--keep", f"indexes/made/{first}")[1]["removed"] == 0
    code, _, said = lived.gc("--keep", "s7")
    assert code == 2
    assert "--keep s7: there is no such version" in said


@pytest.mark.parametrize("key", ["runs/made/lease", "sweeps/made/lease", "imagery/made/lease", "indexes/made/lease"])
def test_while_somebody_writes_nothing_is_removed(lived, key):
    files = set(lived.store.list())
    with Lease(lived.store, key):
        code, result, said = lived.gc()
    assert (code, result) == (1, None)
    assert "is held by process" in said
    assert files <= set(lived.store.list())
    assert lived.gc()[0] == 0


@pytest.mark.parametrize("key", ["sets/made/s1/manifest.json", "runs/made/checkpoints/000001/manifest.json", "sets/made/CURRENT"])
@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[" * 100_000, b'{"version": "s7", "files": []', b"\0garbage}", b'{"kind": "x", "counts": {}']
)
def test_where_nobody_knows_what_is_named_nothing_is_removed(lived, key, damage):
    lived.store.write(key, damage)
    files = set(lived.store.list())
    code, _, said = lived.gc()
    assert code == 1
    assert key in said
    assert "cannot be read" in said
    assert files <= set(lived.store.list())


def test_an_index_that_cannot_be_read_stops_it(lived):
    current = lived.made.current()
    name = current.manifest.segments[0].name
    lived.store.write(current.version.key(f"{name}.parquet"), b"PAR1")
    files = set(lived.store.list())
    code, _, said = lived.gc()
    assert code == 1
    assert f"{name}.parquet differs from its manifest" in said
    assert files <= set(lived.store.list())


def test_a_copy_of_a_version_is_none(lived):
    for key in lived.store.list("sets/made/s5/"):
        lived.store.write(key.replace("s5", "s5-copy"), lived.store.read(key))
    code, _, said = lived.gc()
    assert code == 1
    assert "s5-copy/manifest.json cannot be read; it was altered, copied or cut short" in said
    assert lived.finished("sets", "made") == ["s1", "s2", "s3", "s4", "s5", "s5-copy"]


def test_a_draft_and_a_version_that_was_never_current_stay(lived):
    draft = Artefact(lived.store, "sets", "made").draft("s9")
    draft.write("data", b"half")
    lived.publish("embeddings", "unborn", "e1", set="made/s4")
    lived.store.delete("embeddings/unborn/CURRENT")
    lived.age()
    files = {key for key in lived.store.list() if "/s9/" in key or "unborn" in key or "/s4/" in key}
    assert lived.gc()[0] == 0
    assert files <= set(lived.store.list())


def test_an_interrupted_removal_is_finished(lived, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(removal, "_finish", killed)
        assert lived.gc()[0] == 1
    assert [key for key in lived.store.list() if key.endswith("/removed.json")]
    assert lived.gc()[0] == 0
    assert [key for key in lived.store.list() if key.endswith("/removed.json")] == []
    assert lived.store.list("sets/made/s4/") == []
    assert lived.made.current().version.damage() is None


def test_a_removal_is_finished_where_nothing_else_is_left(workspace):
    workspace.store.write("sets/made/s1/removed.json", b"{}")
    assert job.main(["--config", str(workspace.path), "--dry-run"]) == 0
    assert workspace.gc()[0] == 0
    assert workspace.store.list("sets/") == []


def test_an_empty_workspace_is_likely_a_wrong_one(workspace):
    code, _, said = workspace.gc()
    assert code == 1
    assert "indexes, reports; correct workspace.uri" in said
    assert workspace.store.list() == [], "nothing is written where there may be no workspace"


@pytest.mark.parametrize("days", ["-1", "nan", "inf", "soon", "1e9"])
def test_days_are_days(workspace, days, capfd):
    with pytest.raises(SystemExit) as ended:
        workspace.gc("--older-than", days)
    assert ended.value.code == 2
    assert "is no number of days from 0 to 100,000" in capfd.readouterr().err
