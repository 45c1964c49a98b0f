"""What a person is told while Ray starts; Ray itself stays out of it."""

from __future__ import annotations

import pytest

from rayjobs.cluster import session
from rayjobs.cluster.section import RaySection
from rayjobs.errors import ClusterError, ConfigError


@pytest.fixture
def without_ray(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in ("_start", "_check_folder", "_quieten"):
        monkeypatch.setattr(session, name, lambda *_, **__: None)
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)


@pytest.mark.parametrize(
    ("running", "address", "said"),
    [(False, None, "starting Ray on this machine"), (False, "head:6379", "joining the cluster at head:6379"), (True, None, None)],
)
def test_a_start_is_said_before_it_takes_its_time(without_ray, monkeypatch, running, address, said):
    monkeypatch.setattr(session.ray, "is_initialized", lambda: running)
    lines = []
    with session.joined(RaySection(address=address), workspace="file:/w", shared=False, say=lines.append):
        pass
    assert [line.removeprefix("ray").strip() for line in lines] == ([said] if said else [])


@pytest.mark.parametrize("failures", [1, 2])
def test_a_start_on_a_busy_machine_is_tried_again_once(monkeypatch, failures):
    outcomes = [Exception("The current node timed out during startup.")] * failures
    monkeypatch.setattr(session.ray, "init", lambda *_, **__: (_ for _ in ()).throw(outcomes.pop()) if outcomes else None)
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    if failures == 1:
        session._start_here()
    else:
        with pytest.raises(ClusterError, match=r"timed out during startup\. Try again"):
            session._start_here()
    assert not outcomes


def test_work_for_more_cpus_than_this_machine_has_is_refused_and_a_cluster_may_grow(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(session.ray, "cluster_resources", lambda: {"CPU": 2.0})
    lines = []
    session.require_cpus(RaySection(), 2, "train.num_workers 2", lines.append)
    with pytest.raises(ConfigError, match=r"train\.num_workers 5: this machine has 2 for Ray; lower it"):
        session.require_cpus(RaySection(), 5, "train.num_workers 5", lines.append)
    assert not lines
    session.require_cpus(RaySection(address="head:6379"), 5, "train.num_workers 5", lines.append)
    assert "has 2 CPUs now; waiting" in lines[0]


def test_folders_that_one_node_of_several_sees_are_refused(monkeypatch):
    monkeypatch.setattr(session.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(session.ray, "nodes", lambda: [{"Alive": True}] * 2)
    for workspace, target, what in (("file:/w", None, "workspace file:/w"), ("s3://b/w", "file:/out", "target file:/out")):
        with (
            pytest.raises(ConfigError, match=f"{what} is a folder, and the cluster has 2 nodes"),
            session.joined(RaySection(), workspace=workspace, target=target, shared=False),
        ):
            pass
        session._check_folder("target", target or workspace, shared=True)
