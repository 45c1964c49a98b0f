"""People label while the processes that take their labels down are killed; the writer of the label store is killed at any moment."""

from __future__ import annotations

import collections
import contextlib
import itertools
import multiprocessing
import os
import random
import secrets
import signal
import threading
import time
import uuid
from dataclasses import dataclass, field

import httpx
import pytest

from rayjobs.labels.events import read_segment
from rayjobs.labels.store import LabelStore
from rayjobs.labels.taxonomy import LabelClass, publish_taxonomy
from rayjobs.storage import open_store
from tests.faults.serving import PEOPLE, Library, head, service
from tests.unit.labels.saying import land, said

CLASSES = ("positive", "negative")
_LEASE_S = 300
_PATIENCE_S = 600
"""As long as a service may be away on a machine that others use."""
_THINKING_S = 0.05
_AT_ONCE = 4


@dataclass
class Person:
    """Somebody who labels pictures over HTTP, sends again what was not acknowledged, and now and then takes a label back."""

    name: str
    url: str
    wanted: int
    """Pictures that all are to label together."""
    handed: list[str] = field(default_factory=list)
    """Tiles, in order."""
    kept: list[dict] = field(default_factory=list)
    """Events that were acknowledged."""
    again: int = 0
    """Requests that had to be sent again."""
    lost: int = 0
    fault: Exception | None = None

    def label(self) -> None:
        try:
            with httpx.Client(headers={"authorization": f"Bearer {PEOPLE[self.name]}"}, timeout=30) as client:
                self._label(client)
        except Exception as fault:  # noqa: BLE001  the test tells of it
            self.fault = fault

    def _label(self, client: httpx.Client) -> None:
        chance = random.Random(self.name)
        while True:
            found = self._sent(client, "next", {"count": _AT_ONCE, "held": []})
            if found["progress"]["labelled"] >= self.wanted or not found["items"]:
                self._sent(client, "release", {"leases": [item["lease"] for item in found["items"]]})
                return
            for item in found["items"]:
                self.handed.append(item["tile_id"])
                time.sleep(chance.uniform(0, _THINKING_S))
                first = self._say(client, item, kind="label", label=chance.choice(CLASSES))
                if first and chance.random() < 0.1:
                    self._say(client, item, kind="undo", undoes=first["event_id"])
                    self._say(client, item, kind="label", label=chance.choice(CLASSES))

    def _say(self, client: httpx.Client, item: dict, **what: str) -> dict | None:
        event = {"event_id": str(uuid.uuid4()), "tile_id": item["tile_id"], "lease": item["lease"], **what}
        if self._sent(client, "events", {"events": [event]}) is None:
            self.lost += 1
            return None
        self.kept.append(event)
        return event

    def _sent(self, client: httpx.Client, what: str, body: dict) -> dict | None:
        """Send a request until it is answered; None where a lease was lost."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            with contextlib.suppress(httpx.HTTPError):
                answer = client.post(f"{self.url}/v1/labels/ponds/{what}", json=body)
                if answer.status_code in {200, 409}:
                    return answer.json() if answer.status_code == 200 else None
                assert answer.status_code >= 500 or answer.status_code == 408, answer.text
            assert time.monotonic() < until, "the service does not come back"
            self.again += 1
            time.sleep(0.2)


@pytest.mark.fault("L1")
def test_two_people_label_while_the_service_is_killed(row, tmp_path):
    """Every event that was acknowledged is there once, and no picture has two people's labels."""
    library = Library(tmp_path, side=16 * int((row.tries * 1.3) ** 0.5 + 1))
    library.publish(1)
    store = open_store(library.uri)
    publish_taxonomy(store, "ponds", [LabelClass(name=name) for name in CLASSES])
    with head(cpus=4) as (cluster, _), service(cluster, library, replicas=2, label_lease_s=_LEASE_S) as served:
        people = [Person(name, served.url, row.tries) for name in PEOPLE]
        threads = [threading.Thread(target=person.label, daemon=True) for person in people]
        for thread in threads:
            thread.start()
        kills = 0
        while any(thread.is_alive() for thread in threads):
            time.sleep(random.uniform(0.5, 4))
            replicas = served.replicas("Ingress")
            for pid in random.sample(replicas, random.randint(min(1, len(replicas)), len(replicas))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
        for thread in threads:
            thread.join()
        assert [person.fault for person in people] == [None, None]
        served.wait_for(lambda: served.get("/v1/labels/ponds/progress").status_code == 200, "the service after the last kill")
        audit = served.get("/v1/labels/ponds/events", params={"limit": 10_000}).json()["events"]
    assert kills >= max(1, row.tries // 40), "the kills fell into the work"
    kept = [event["event_id"] for person in people for event in person.kept]
    assert sorted(event["event_id"] for event in audit) == sorted(kept), "each acknowledged event is there once, and no other"
    assert _ids_in_segments(store, "ponds") == collections.Counter(kept)
    with LabelStore(store, "ponds").tally() as tally:
        assert len(tally.current) >= row.tries
        twice = [tile for tile, one in tally.current.items() if len(one.people) > 1]
    assert not twice
    handed = collections.Counter(tile for person in people for tile in set(person.handed))
    assert max(handed.values()) == 1, "no picture was handed to two people"
    assert sum(person.lost for person in people) == 0
    again = sum(person.again for person in people)
    row.lost = f"0 of {len(kept)} events, none doubled, no picture labelled by two, after {kills} kills; {again} requests sent again"


def _ids_in_segments(store, taxonomy):
    """How often each event stands in the segments themselves."""
    segments = [read_segment(store.read(key), key) for key in store.list(f"labels/{taxonomy}/events/")]
    return collections.Counter(event.event_id for segment in segments for event in segment)


def append_for_ever(uri, environment, person, begin, told):
    """Append one event after the other, until killed; each is told of when it is acknowledged. The first may have been sent before."""
    os.environ.update(environment)
    labels = LabelStore(open_store(uri), "land")
    for number in itertools.count(begin):
        labels.append([said(person, f"{person}-{number}", "field", event_id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{person} {number}")))])
        told.send(number)


@pytest.mark.parametrize("kind", [pytest.param("file", marks=pytest.mark.fault("L2")), pytest.param("s3", marks=pytest.mark.fault("L3"))])
def test_the_writer_is_killed_at_any_moment(kind, row, tmp_path, request):
    """Two writers at once, of which one is killed again and again: what was acknowledged is there, nothing is there twice."""
    uri, environment = f"file:{tmp_path}/root", {}
    if kind == "s3":
        server = request.getfixturevalue("s3_server")
        environment = server.environment
        os.environ.update(environment)
        uri = server.bucket(f"labels-{secrets.token_hex(4)}")
    land(open_store(uri))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    writers = {person: _Writer(context, uri, environment, person) for person in ("anna", "ben")}
    writers["ben"].start()
    for _ in range(row.tries):
        writers["anna"].start()
        writers["anna"].wait()
        time.sleep(random.uniform(0, 0.1))
        writers["anna"].kill()
    writers["ben"].kill()
    events = LabelStore(open_store(uri), "land").events()
    assert max(_ids_in_segments(open_store(uri), "land").values()) == 1
    for person, writer in writers.items():
        numbers = [int(event.tile_id.partition("-")[2]) for event in events if event.person == person]
        assert numbers == list(range(len(numbers))), "in order, each once"
        assert len(numbers) - writer.kept in {0, 1}, "what was acknowledged is there; one more may have arrived without an answer"
        assert writer.kept >= 1
    row.lost = f"0 of {sum(writer.kept for writer in writers.values()):,} events, none doubled ({kind}: {len(events):,} there)"


class _Writer:
    """A process that appends, and what it has told."""

    def __init__(self, context, uri, environment, person):
        self._context, self._where, self._person = context, (uri, environment), person
        self.kept = 0
        """Events that were acknowledged: those of numbers below."""

    def start(self):
        self._here, there = self._context.Pipe()
        self._process = self._context.Process(target=append_for_ever, args=(*self._where, self._person, self.kept, there))
        self._process.start()
        there.close()

    def wait(self):
        """Wait until it has begun to append."""
        assert self._here.poll(120)

    def kill(self):
        self._process.kill()
        self._process.join()
        with contextlib.suppress(EOFError):
            while True:
                self.kept = self._here.recv() + 1
