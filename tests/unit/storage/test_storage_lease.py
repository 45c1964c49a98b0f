from __future__ import annotations

import json
import pickle
from types import SimpleNamespace

import pytest

from rayjobs.errors import PublishConflictError, StorageError
from rayjobs.storage import Lease
from rayjobs.storage import lease as ours
from tests.unit.storage.storage_faulty import ANSWERED_TWICE, REFUSED, UNANSWERED, Faulty

KEY = "runs/r/lease"
STRANGER = {"host": "elsewhere", "pid": 1, "started": 0, "id": "stranger", "expires": 9e12}


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1e9)
    clock.time = lambda: clock.now
    monkeypatch.setattr(ours, "time", clock)
    return clock


def take_over(store):
    found = store.read_tagged(KEY)
    store.swap(KEY, json.dumps(STRANGER).encode(), expected=found.tag if found else None)


def test_a_lease_is_renewed_again_after_storage_failed(store):
    faulty = Faulty(store)
    with Lease(faulty, KEY, seconds=3) as lease:
        faulty.faults.append(REFUSED)
        assert faulty.recovered.wait(20)
        lease.check()
        assert json.loads(store.read(KEY))["expires"] > 0


def test_storage_may_fail_until_the_lease_would_have_expired(store, clock):
    faulty = Faulty(store)
    with Lease(faulty, KEY, seconds=100) as lease:
        faulty.faults.extend([REFUSED] * 3)
        for later in (40, 80, 99):
            clock.now = 1e9 + later
            assert not lease._renew()
            lease.check()
        assert lease._renew()
        clock.now += 99
        lease.check()

        clock.now += 2
        faulty.faults.append(REFUSED)
        assert not lease._renew()
        clock.now = 0.0  # lost is lost, whatever the clock says later
        with pytest.raises(PublishConflictError, match="could not be renewed for 100 s") as caught:
            lease.check()
        assert isinstance(caught.value.__cause__, StorageError)
    assert json.loads(store.read(KEY))["expires"] > 0  # what may be another's is not given back


def test_a_lease_expires_though_its_renewal_still_hangs(store, clock):
    with Lease(store, KEY, seconds=100) as lease:
        clock.now += 99
        lease.check()
        clock.now += 2
        with pytest.raises(PublishConflictError, match="could not be renewed"):
            lease.check()


def test_the_lease_is_tried_again_sooner_where_storage_failed():
    pauses = []

    def wait(pause):
        pauses.append(pause)
        return len(pauses) == 4

    lease = Lease(None, KEY, seconds=90)
    lease._stop = SimpleNamespace(wait=wait)
    answers = iter([True, False, True])
    lease._renew = lambda: next(answers)
    lease._keep_renewing()
    assert pauses == [30, 30, 3, 30]


@pytest.mark.parametrize("fault", [ANSWERED_TWICE, UNANSWERED])
def test_a_renewal_that_arrived_without_its_answer_is_ours(store, clock, fault):
    faulty = Faulty(store)
    with Lease(faulty, KEY, seconds=100) as lease:
        for _ in range(3):
            faulty.faults.append(fault)
            clock.now += 30
            if not lease._renew():
                clock.now += 1
                assert not lease._renew()  # meets the renewal that arrived late, and knows its own again
                assert lease._renew()
            assert json.loads(store.read(KEY))["expires"] == clock.now + 100
            lease.check()
    assert json.loads(store.read(KEY))["expires"] == 0.0


def test_a_lease_taken_without_an_answer_is_taken(store):
    with Lease(Faulty(store, ANSWERED_TWICE), KEY) as lease:
        lease.check()
        with pytest.raises(PublishConflictError, match="is held by process"), Lease(store, KEY):
            pass


def test_another_holder_is_never_taken_for_ourselves(store):
    with Lease(store, KEY) as lease:
        take_over(store)
        assert lease._renew()
        with pytest.raises(PublishConflictError, match="changed by another"):
            lease.check()
    assert json.loads(store.read(KEY)) == STRANGER


@pytest.mark.parametrize("fault", [REFUSED, UNANSWERED])
def test_giving_back_hides_no_error(store, fault):
    with pytest.raises(ZeroDivisionError), Lease(Faulty(store, None, fault), KEY):
        raise ZeroDivisionError


def test_giving_back_what_another_took_hides_no_error(store):
    with pytest.raises(ZeroDivisionError), Lease(store, KEY):
        take_over(store), 1 / 0
    assert json.loads(store.read(KEY)) == STRANGER


def test_workers_far_away_can_ask_who_holds_a_lease(store):
    far = pickle.loads(pickle.dumps(store))
    with Lease(store, KEY) as lease:
        assert Lease.held(far, KEY, lease.token)
        assert not Lease.held(far, KEY, "other")
    assert not Lease.held(far, KEY, lease.token)
    with Lease(store, KEY) as later:
        assert not Lease.held(far, KEY, lease.token)
        assert Lease.held(far, KEY, later.token)
        take_over(store)
        assert not Lease.held(far, KEY, later.token)
    assert not Lease.held(far, "runs/none/lease", lease.token)
