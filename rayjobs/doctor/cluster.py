"""Ray: the nodes of a cluster and in what they differ, or whether this machine has room for a local one, which is not started."""

from __future__ import annotations

import functools
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
import ray.cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayjobs.cluster.session import cpus_here, is_joined, joined
from rayjobs.doctor import facts
from rayjobs.doctor.checks import Check, Look, Patient, caution, fault, looked, ok
from rayjobs.doctor.machine import memory_available, shared_memory
from rayjobs.errors import first_few
from rayjobs.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayjobs.cluster.section import RaySection

ESSENTIAL = {"python": "Python", "ray": "Ray", "rayjobs": "rayjobs", "code": "the code of rayjobs"}
"""In what nodes may not differ: Ray refuses it, or work fails midway."""
DESIRED = {"torch": "torch", "rasterio": "rasterio", "gdal": "GDAL", "faiss": "FAISS", "numpy": "numpy"}
"""In what they should not: the same tile may have other pixels, or another vector."""
_CONNECT_S = 5.0
_PATIENCE_S = 90.0
_ASKED = 5
_LATE_S, _TOO_LATE_S = 5.0, 60.0
"""Seconds by which a clock may be off before it is said, and before leases (120 s) and signed requests are in danger."""
_BESIDE_BYTES = 2**30
"""What Ray's own processes and one worker take, beside shared memory."""
_LEAST_STORE = 256 * 2**20
_NEARLY_FULL, _FULL = 0.9, 0.95
_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of a cluster."""

    name: str
    """Address and the beginning of Ray's id."""
    told: Mapping[str, Any]
    """As `facts.Witness.tell`."""
    offset_s: float
    """How far its clock is ahead of the one here."""
    uncertain_s: float
    """By how much that may be wrong: half of the time the quickest question took."""
    cpus: float
    gpus: float
    """That Ray gives out."""
    store_bytes: int
    """Of its object store."""


def looks(patient: Patient) -> dict[str, Look]:
    """Return what to look at."""
    if is_joined(patient.ray):
        return {"cluster/address": functools.partial(_cluster, patient)}
    return {"cluster/address": nothing_joined, "cluster/room": functools.partial(room, patient.ray)}


def nothing_joined() -> Check:
    """Say that there is no cluster."""
    return ok("cluster/address", "neither ray.address nor RAY_ADDRESS is set: each command starts a Ray of its own on this machine")


def room(settings: RaySection) -> Check:
    """See whether a local Ray would have what is asked for."""
    return room_judged(settings, cpus=len(os.sched_getaffinity(0)), memory=memory_available(), shm=shared_memory())


def room_judged(settings: RaySection, *, cpus: int, memory: int, shm: int) -> Check:
    """Judge whether so many CPUs, bytes of memory and of shared memory suffice."""
    store, wanted = settings.object_store_mb * 2**20, cpus_here(settings)
    said = (
        f"a local Ray would take {wanted} CPUs of {cpus}, and {settings.object_store_mb} MiB of {shm / 2**20:,.0f} MiB shared memory; "
        f"{memory / _GIB:.1f} GiB of memory are free"
    )
    if memory < store + _BESIDE_BYTES:
        return fault("cluster/room", f"{said}, too little", "set --ray.object_store_mb lower, end other work, or join a cluster")
    if shm < store:
        remedy = "set --ray.object_store_mb lower, or give the container more (docker run --shm-size): Ray falls back to a slow disk"
        return caution("cluster/room", said, remedy)
    if wanted > cpus:
        return caution("cluster/room", said, f"set --ray.num_cpus {cpus}: more work at a time than there are CPUs is slower")
    return ok("cluster/room", said)


def _unanswered(settings: RaySection) -> str | None:
    """Return why nothing answers at the address of a cluster; None where something does, or the address is none of a host and port.

    Ray itself waits for many minutes.
    """
    address = settings.address or os.environ["RAY_ADDRESS"]
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return None
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        return f"nothing answers at {address} ({error})"
    return None


def _cluster(patient: Patient) -> list[Check]:
    """Join the cluster, have each node tell of itself, and compare."""
    experiment = patient.experiment
    uri = "" if experiment is None else open_store(experiment.workspace.uri).uri
    if (silence := _unanswered(patient.ray)) is not None:
        return [fault("cluster/address", silence, "start the cluster, correct ray.address, or unset RAY_ADDRESS to work on this machine")]
    with joined(patient.ray, workspace="", shared=True, say=patient.say):  # a workspace that nodes do not share is a check of its own
        alive = [node for node in ray.nodes() if node["Alive"]]
        nodes, silent = _asked(alive)
    here = facts.Witness().tell()
    shared = experiment is not None and experiment.workspace.shared
    resources = f"{sum(node.cpus for node in nodes):g} CPUs, {sum(node.gpus for node in nodes):g} GPUs"
    first = ok("cluster/address", f"joined: {len(alive)} nodes, {resources}")
    if silent:
        remedy = "see whether it is overloaded or gone: ray status, ray list nodes"
        first = fault("cluster/address", f"{len(silent)} of {len(alive)} nodes do not answer: {first_few(silent)}", remedy)
    judged: dict[str, Look] = {
        f"cluster/{what}": functools.partial(same, what, name, nodes, here) for what, name in (ESSENTIAL | DESIRED).items()
    }
    judged |= {
        "cluster/gpu": functools.partial(gpus, nodes, patient.ray.gpu),
        "cluster/object store": functools.partial(stores, nodes),
        "cluster/disk": functools.partial(disks, nodes),
        "cluster/clock": functools.partial(clocks, nodes),
        "cluster/workspace": functools.partial(reached, uri, len(alive), shared=shared),
    }
    return [first, *looked(judged)]


def _asked(alive: Sequence[Mapping[str, Any]]) -> tuple[list[Node], list[str]]:
    """Return the nodes that answer, and what to call those that do not."""
    ray.cloudpickle.register_pickle_by_value(facts)
    try:
        remote: Any = ray.remote(num_cpus=0)(facts.Witness)  # Ray's decorator hides the class from mypy
        witnesses = [
            remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote() for node in alive
        ]
        answers = [witness.tell.remote() for witness in witnesses]
        done, _ = ray.wait(answers, num_returns=len(answers), timeout=_PATIENCE_S)
        nodes, silent = [], []
        for node, witness, answer in zip(alive, witnesses, answers, strict=True):
            told = _told(answer) if answer in done else "no answer"
            if isinstance(told, str):
                silent.append(f"{_name(node)}: {told}")
            else:
                nodes.append(_node(node, told, *_offset(witness)))
            ray.kill(witness)
        return nodes, silent
    finally:
        ray.cloudpickle.unregister_pickle_by_value(facts)


def _told(answer: Any) -> dict[str, Any] | str:
    """Return what a node tells, or why it does not."""
    try:
        told: dict[str, Any] = ray.get(answer)
    except Exception as error:  # noqa: BLE001  whatever a node dies of, the others answer
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return told


def _offset(witness: Any) -> tuple[float, float]:
    """Return how far a node's clock is ahead, and by how much that may be wrong (Cristian, Probabilistic clock synchronization, 1989)."""
    found = []
    for _ in range(_ASKED):
        before = time.time()
        there = ray.get(witness.now.remote(), timeout=_PATIENCE_S)
        after = time.time()
        found.append(((after - before) / 2, there - (before + after) / 2))
    uncertain, offset = min(found)
    return offset, uncertain


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"


def _node(node: Mapping[str, Any], told: Mapping[str, Any], offset_s: float, uncertain_s: float) -> Node:
    resources = node["Resources"]
    return Node(
        name=_name(node),
        told=told,
        offset_s=offset_s,
        uncertain_s=uncertain_s,
        cpus=resources.get("CPU", 0),
        gpus=resources.get("GPU", 0),
        store_bytes=int(resources.get("object_store_memory", 0)),
    )


def same(what: str, called: str, nodes: Sequence[Node], here: Mapping[str, Any]) -> Check:
    """Compare what all nodes have with what is here."""
    name, mine = f"cluster/{what}", here[what]
    other = [f"{node.name} has {node.told[what] or 'none'}" for node in nodes if node.told[what] != mine]
    if not other:
        return ok(name, f"{called} {mine} here and on all {len(nodes)} nodes")
    finding = f"{called} is {mine or 'absent'} here, but {first_few(other)}"
    if what in ESSENTIAL:
        return fault(name, finding, "give all nodes, and the machine that commands are run on, the same image or environment")
    return caution(name, finding, "give all nodes the same version: the same tile may have another vector elsewhere")


def gpus(nodes: Sequence[Node], asked: str) -> Check:
    """Compare the GPUs that nodes have with those that Ray gives out."""
    idle = [f"{node.name} has {len(node.told['gpus'])} and gives out {node.gpus:g}" for node in nodes if node.gpus < len(node.told["gpus"])]
    if idle:
        remedy = "start Ray there with --num-gpus, and give the container its GPUs: Ray counts those that it can see"
        return caution("cluster/gpu", f"GPUs that Ray does not give out: {first_few(idle)}", remedy)
    total = sum(node.gpus for node in nodes)
    if asked == "yes" and not total:
        remedy = "nothing where the cluster starts nodes with GPUs when asked; else set --ray.gpu auto, or work waits for ever"
        return caution("cluster/gpu", "ray.gpu is yes, and no node that is up has a GPU", remedy)
    return ok("cluster/gpu", f"{total:g} GPUs")


def stores(nodes: Sequence[Node]) -> Check:
    """Look at the sizes of object stores."""
    least = min(nodes, key=lambda node: node.store_bytes)
    said = f"{least.store_bytes / 2**20:,.0f} MiB at least, on {least.name}"
    slow = [node.name for node in nodes if node.store_bytes > node.told["shm_bytes"]]
    if slow:
        remedy = "give the container more shared memory (--shm-size), or start Ray with a smaller --object-store-memory"
        return caution("cluster/object store", f"{said}; larger than shared memory, so on a slow disk: {first_few(slow)}", remedy)
    if least.store_bytes < _LEAST_STORE:
        return caution("cluster/object store", said, "start Ray there with a larger --object-store-memory, or it spills to disk")
    return ok("cluster/object store", said)


def disks(nodes: Sequence[Node]) -> Check:
    """Look at the room on disks."""
    fullest = max(nodes, key=lambda node: node.told["disk_used"])
    used = fullest.told["disk_used"]
    said = f"{used:.0%} used at most, {fullest.told['disk_bytes'] / _GIB:.1f} GiB free, on {fullest.name}"
    if used > _FULL:
        return fault("cluster/disk", f"{said}: Ray writes nothing more there", "make room there, or put --temp-dir elsewhere")
    if used > _NEARLY_FULL:
        return caution("cluster/disk", said, f"make room there: Ray writes nothing more above {_FULL:.0%}")
    return ok("cluster/disk", said)


def clocks(nodes: Sequence[Node]) -> Check:
    """Look at how far clocks are off, for sure."""
    worst = max(nodes, key=lambda node: abs(node.offset_s) - node.uncertain_s)
    said = f"{abs(worst.offset_s):.3f} s off at most (known to {worst.uncertain_s:.3f} s), on {worst.name}"
    sure = abs(worst.offset_s) - worst.uncertain_s
    remedy = "have chrony or ntpd keep the clocks of all nodes"
    if sure > _TOO_LATE_S:
        return fault("cluster/clock", f"{said}: a live writer may look dead to others, and S3 may refuse it", remedy)
    return caution("cluster/clock", said, remedy) if sure > _LATE_S else ok("cluster/clock", said)


def reached(uri: str, nodes: int, *, shared: bool) -> Check:
    """Look at whether all nodes see the workspace, as commands do before they begin."""
    if uri.startswith("file:") and nodes > 1 and not shared:
        remedy = "use s3://BUCKET/PREFIX, or set workspace.shared: true if every node mounts that folder"
        return fault("cluster/workspace", f"{uri} is a folder, and the cluster has {nodes} nodes", remedy)
    return ok("cluster/workspace", f"{uri or 'no workspace was named'}" + (", which is said to be on every node" if shared else ""))
