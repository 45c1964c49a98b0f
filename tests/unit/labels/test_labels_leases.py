from __future__ import annotations

import collections
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from rayjobs.errors import PublishConflictError
from rayjobs.labels.leases import Leases
from rayjobs.storage import open_store
from tests.unit.labels.test_labels_store import Refusing

TILES = [f"t{number}" for number in range(40)]


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def first_free(count):
    return lambda held: [tile for tile in TILES if tile not in {one.tile_id for one in held}][:count]


def test_no_tile_is_in_two_hands(store):
    clock = Clock()
    rooms = [Leases(store, "land", clock=clock) for _ in range(4)]

    def take(place):
        return [one for _ in range(5) for one in rooms[place].take(f"person {place}", first_free(2))]

    with ThreadPoolExecutor(4) as people:
        given = [one for part in people.map(take, range(4)) for one in part]
    assert sorted(one.tile_id for one in given) == sorted(TILES), "each once"
    assert sorted(rooms[0].live(), key=lambda one: one.lease) == sorted(given, key=lambda one: one.lease)
    assert rooms[0].take("late", first_free(2)) == []


def test_leases_expire_and_survive_the_process_that_gave_them(store):
    clock = Clock()
    [held] = Leases(store, "land", seconds=60, clock=clock).take("anna", first_free(1))
    clock.now += 59
    assert Leases(store, "land", seconds=60, clock=clock).live() == [held]
    assert [one.tile_id for one in Leases(store, "land", seconds=60, clock=clock).take("ben", first_free(1))] == ["t1"]
    clock.now += 2
    assert [one.tile_id for one in Leases(store, "land", seconds=60, clock=clock).take("ben", first_free(1))] == ["t0"]


def test_one_releases_ones_own_leases_alone(local):
    leases = Leases(local, "land", clock=Clock())
    anna, ben = leases.take("anna", first_free(2)), leases.take("ben", first_free(1))
    everything = [one.lease for one in anna + ben]
    assert leases.release("anna", everything) == 2
    assert leases.release("anna", everything) == 0
    assert leases.live() == ben


def test_a_lease_is_renewed_under_its_name(local):
    clock = Clock()
    leases = Leases(local, "land", seconds=60, clock=clock)
    [before] = leases.take("anna", first_free(1))
    clock.now += 50
    [after] = leases.take("anna", lambda _: ["t0"])
    assert (after.lease, after.expires) == (before.lease, before.expires + 50)
    with pytest.raises(ValueError, match="somebody else's hands"):
        leases.take("ben", lambda _: ["t0"])


def test_a_write_whose_answer_was_lost_hands_out_no_more(local):
    leases = Leases(Refusing(local, PublishConflictError("changed")), "land", clock=Clock())
    given = leases.take("anna", first_free(3))
    assert given == leases.live()
    assert len(given) == 3


@pytest.mark.parametrize("data", [b"", b"[1", b"[1]", b"null", b'[{"lease": "x"}]'])
def test_leases_that_cannot_be_read_are_none(local, data):
    local.write("labels/land/leases/current.json", data)
    leases = Leases(local, "land", clock=Clock())
    assert leases.live() == []
    assert leases.take("anna", first_free(2)) == leases.live() != []


class Handing(RuleBasedStateMachine):
    """Leases beside a naive model: a dictionary of who holds which tile until when."""

    folder = None
    numbers = itertools.count()

    @initialize()
    def begin(self):
        self.clock = Clock()
        store = open_store(f"file:{self.folder}/{next(self.numbers)}")
        self.rooms = [Leases(store, "land", seconds=10, clock=self.clock) for _ in range(2)]
        self.model = {}
        self.names = {}

    @rule(room=st.integers(0, 1), person=st.sampled_from("ab"), count=st.integers(1, 5))
    def take(self, room, person, count):
        free = [tile for tile in TILES if tile not in self.live()][:count]
        given = self.rooms[room].take(person, first_free(count))
        assert [one.tile_id for one in given] == free
        for one in given:
            self.model[one.tile_id] = (person, self.clock.now + 10)
            self.names[one.lease] = one.tile_id

    @rule(room=st.integers(0, 1), person=st.sampled_from("ab"), data=st.data())
    def release(self, room, person, data):
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.names)), unique=True)) if self.names else []
        held = self.live()
        own = {self.names[name] for name in chosen if held.get(self.names[name], (None, 0))[0] == person}
        current = {one.tile_id: one.lease for one in self.rooms[room].live()}
        own = {tile for tile in own if current[tile] in chosen}
        assert self.rooms[room].release(person, chosen) == len(own)
        for tile in own:
            del self.model[tile]

    @rule(seconds=st.sampled_from([1.0, 5.0, 11.0]))
    def wait(self, seconds):
        self.clock.now += seconds

    def live(self):
        return {tile: held for tile, held in self.model.items() if held[1] > self.clock.now}

    @invariant()
    def both_see_the_same(self):
        for room in getattr(self, "rooms", []):
            found = room.live()
            assert {one.tile_id: (one.person, one.expires) for one in found} == self.live()
            assert max(collections.Counter(one.tile_id for one in found).values(), default=0) <= 1


def test_leases_are_those_of_a_naive_model(tmp_path):
    Handing.folder = tmp_path
    run_state_machine_as_test(
        Handing, settings=settings(max_examples=20, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck))
    )
