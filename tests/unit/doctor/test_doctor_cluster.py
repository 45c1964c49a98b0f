"""What is said of the nodes of a cluster."""

from __future__ import annotations

import socket

import pytest

from rayjobs.cluster.section import RaySection
from rayjobs.doctor import cluster, facts
from rayjobs.doctor.checks import Patient, looked
from rayjobs.doctor.cluster import DESIRED, ESSENTIAL, Node
from rayjobs.tracking import TrackingSection

GIB = 2**30


def node(name="10.0.0.2 (abcdef)", *, offset_s=0.0, uncertain_s=0.001, gpus=0.0, store_bytes=GIB, **told):
    known = {"gpus": [], "disk_bytes": 50 * GIB, "disk_used": 0.5, "shm_bytes": 4 * GIB, **told}
    return Node(name=name, told=known, offset_s=offset_s, uncertain_s=uncertain_s, cpus=4, gpus=gpus, store_bytes=store_bytes)


def test_a_node_tells_all_that_is_compared():
    told = facts.Witness().tell()
    assert {*ESSENTIAL, *DESIRED, "gpus", "disk_bytes", "disk_used", "shm_bytes", "host"} == set(told)
    assert all(told[name] for name in (*ESSENTIAL, *DESIRED))


@pytest.mark.parametrize(("what", "state"), [("ray", "fault"), ("code", "fault"), ("torch", "caution"), ("gdal", "caution")])
def test_nodes_that_differ_are_named(what, state):
    nodes = [node(**{what: "1"}), node("10.0.0.3 (fedcba)", **{what: "2"}), node("10.0.0.4 (aaaaaa)", **{what: None})]
    check = cluster.same(what, what, nodes, {what: "1"})
    assert check.state == state
    assert "10.0.0.3 (fedcba) has 2; 10.0.0.4 (aaaaaa) has none" in check.finding
    assert "10.0.0.2" not in check.finding
    assert cluster.same(what, what, nodes[:1], {what: "1"}).state == "ok"


@pytest.mark.parametrize(
    ("offset_s", "uncertain_s", "state"), [(0.01, 0.001, "ok"), (-20, 0.1, "caution"), (-20, 30, "ok"), (100, 0.1, "fault")]
)
def test_clocks_that_are_off_for_sure_are_told(offset_s, uncertain_s, state):
    assert cluster.clocks([node(), node("other", offset_s=offset_s, uncertain_s=uncertain_s)]).state == state


def test_gpus_that_ray_does_not_give_out_are_told():
    one = Node(name="n", told={**node().told, "gpus": ["A100"]}, offset_s=0, uncertain_s=0, cpus=1, gpus=0, store_bytes=GIB)
    assert "has 1 and gives out 0" in cluster.gpus([one], "auto").finding
    assert cluster.gpus([node()], "auto").state == "ok"
    assert cluster.gpus([node()], "yes").state == "caution"


def test_stores_and_disks_are_judged():
    assert cluster.stores([node()]).state == "ok"
    assert "10 MiB" in cluster.stores([node(), node("small", store_bytes=10 * 2**20)]).finding
    assert "slow disk: thin" in cluster.stores([node("thin", shm_bytes=2**26)]).finding
    assert [cluster.disks([node(), node(disk_used=used)]).state for used in (0.5, 0.92, 0.97)] == ["ok", "caution", "fault"]


@pytest.mark.parametrize(
    ("uri", "nodes", "shared", "state"),
    [("file:/w", 2, False, "fault"), ("file:/w", 1, False, "ok"), ("file:/w", 2, True, "ok"), ("s3://b/p", 9, False, "ok")],
)
def test_a_folder_that_nodes_do_not_share_is_told(uri, nodes, shared, state):
    assert cluster.reached(uri, nodes, shared=shared).state == state


def patient(address, folder):
    return Patient(experiment=None, ray=RaySection(address=address), tracking=TrackingSection(), folder=folder, say=lambda _: None)


def test_an_address_at_which_nothing_answers_is_told_at_once(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        [check] = looked(cluster.looks(patient(f"127.0.0.1:{taken.getsockname()[1]}", tmp_path)))
    assert (check.name, check.state) == ("cluster/address", "fault")
    assert "nothing answers at 127.0.0.1" in check.finding


def test_without_an_address_ray_is_not_started(tmp_path, monkeypatch):
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    names = [check.name for check in looked(cluster.looks(patient(None, tmp_path)))]
    assert names == ["cluster/address", "cluster/room"]
    assert not ray.is_initialized()
