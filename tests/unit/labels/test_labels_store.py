from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from rayjobs.errors import DamagedError, LabelError, LabelLostError, PublishConflictError, StorageError, UnknownTaxonomyError
from rayjobs.labels import store as label_store
from rayjobs.labels.store import Appended, LabelStore
from rayjobs.labels.taxonomy import LabelClass, publish_taxonomy
from tests.unit.labels.saying import land, said


def ids(events):
    return [event.event_id for event in events]


def test_events_are_read_as_they_were_added(store):
    land(store)
    first, second = [said("a", "t1", "field"), said("a", "t2")], [said("b", "t3", "water", origin="search")]
    writer = LabelStore(store, "land")
    assert writer.append(first) == Appended(accepted=2, already=0)
    assert writer.append(second) == Appended(accepted=1, already=0)
    assert LabelStore(store, "land").events() == first + second == writer.events()
    assert writer.events(since=2) == second


def test_a_repeated_delivery_is_one_event(store):
    land(store)
    event, other = said("a", "t1", "field"), said("a", "t2", "field")
    LabelStore(store, "land").append([event])
    assert LabelStore(store, "land").append([event, other, other]) == Appended(accepted=1, already=2)
    assert LabelStore(store, "land").append([event]) == Appended(accepted=0, already=1)
    assert ids(LabelStore(store, "land").events()) == ids([event, other])
    assert len(store.list("labels/land/events/")) == 2, "what brings nothing writes nothing"


def test_two_writers_keep_one_order(store):
    land(store)
    writers = [LabelStore(store, "land") for _ in range(4)]
    sent = [[said(str(place), f"t{place}-{number}", "field") for number in range(6)] for place in range(4)]
    twice = said("x", "t", "field")

    def write(place):
        for event in sent[place]:
            writers[place].append([event])
            writers[place].append([twice])

    with ThreadPoolExecutor(4) as people:
        list(people.map(write, range(4)))
    orders = [ids(writer.events()) for writer in [*writers, LabelStore(store, "land")]]
    assert all(order == orders[0] for order in orders)
    assert sorted(orders[0]) == sorted(ids([event for part in sent for event in part] + [twice]))
    for part in sent:
        assert [one for one in orders[0] if one in set(ids(part))] == ids(part), "each person's own order"


def test_a_picture_that_was_handed_to_one_is_not_labelled_by_two(store):
    land(store)
    anna, ben = LabelStore(store, "land"), LabelStore(store, "land")
    ben.events()
    late, other = said("ben", "t", "water"), said("ben", "t2", "water")
    anna.append([said("anna", "t", "field")])
    with pytest.raises(LabelLostError, match="labelled by anna") as refusal:
        ben.append([late, other], alone=ids([late, other]))
    assert refusal.value.lost == {"t": ["anna"]}
    assert ben.append([other], alone=ids([other])).accepted == 1
    assert ben.append([said("ben", "t", "water")]).accepted == 1, "a second opinion that is meant is one"


def test_who_undid_their_label_is_in_nobodys_way(local):
    land(local)
    labels, first, later = LabelStore(local, "land"), said("anna", "t", "field"), said("ben", "t", "water")
    labels.append([first, said("anna", "t", undoes=first)])
    assert labels.append([later], alone=[later.event_id]).accepted == 1


def test_an_undo_names_an_event_of_its_own(local):
    land(local)
    labels, event = LabelStore(local, "land"), said("anna", "t", "field")
    for wrong in (said("anna", "t", undoes=event), said("ben", "t", undoes=event), said("anna", "t2", undoes=event)):
        with pytest.raises(LabelError, match="to undo"):
            labels.append([wrong])
        if wrong.person == "anna" and wrong.tile_id == "t":
            labels.append([event])
    undo = said("anna", "t", undoes=event)
    labels.append([undo])
    with pytest.raises(LabelError):
        labels.append([said("anna", "t", undoes=undo)])


def test_a_label_is_a_class(local):
    land(local)
    with pytest.raises(LabelError, match="no class 'town'"):
        LabelStore(local, "land").append([said("a", "t", "town")])
    with pytest.raises(UnknownTaxonomyError):
        LabelStore(local, "sea").append([said("a", "t", "field")])


def test_a_renamed_class_keeps_its_labels(local):
    land(local)
    labels = LabelStore(local, "land")
    labels.append([said("a", "t", "field"), said("b", "t", "field")])
    publish_taxonomy(local, "land", [LabelClass(name="meadow", formerly=("field",)), LabelClass(name="forest"), LabelClass(name="water")])
    labels.append([said("c", "t", "meadow"), said("d", "t", "field")])  # d's page was opened before
    with labels.tally() as tally:
        assert tally.current["t"].votes == {"meadow": 4}


def test_a_history_stands_for_the_segments_before_it(store):
    land(store)
    writer, events = LabelStore(store, "land"), [said("a", f"t{number}", "field") for number in range(6)]
    for event in events[:4]:
        writer.append([event])
    writer.compact()
    for event in events[4:]:
        writer.append([event])
    for number in range(1, 5):  # as if a reader of them would be slow
        store.delete(f"labels/land/events/{number:09}.parquet")
    reader = LabelStore(store, "land")
    assert reader.events() == events
    assert reader.append([said("b", "t", "water")]).accepted == 1
    assert len(writer.events()) == 7


def test_histories_are_written_by_themselves(local, monkeypatch):
    monkeypatch.setattr(label_store, "_COMPACT_EVERY", 3)
    land(local)
    labels = LabelStore(local, "land")
    for number in range(7):
        labels.append([said("a", f"t{number}", "field")])
    assert local.list("labels/land/history/") == [f"labels/land/history/{number:09}.parquet" for number in (3, 6)]
    assert LabelStore(local, "land").events() == labels.events()


class Refusing:
    """A store whose conditional writes arrive and are then refused, as when the first answer to a write is lost and it is sent again."""

    def __init__(self, store, error):
        self._store, self._error, self.wrong = store, error, True

    def __getattr__(self, name):
        return getattr(self._store, name)

    def swap(self, key, data, *, expected):
        tag = self._store.swap(key, data, expected=expected)
        if self.wrong:
            self.wrong = False
            raise self._error
        return tag


@pytest.mark.parametrize("error", [PublishConflictError("changed by another writer"), StorageError("the answer was lost")])
def test_a_write_whose_answer_was_lost_is_there_once(local, error):
    land(local)
    event = said("a", "t", "field")
    labels = LabelStore(Refusing(local, error), "land")
    if isinstance(error, PublishConflictError):
        labels.append([event], alone=[event.event_id])
    else:
        with pytest.raises(StorageError):
            labels.append([event])
    assert labels.append([event]) == Appended(accepted=0, already=1)
    assert LabelStore(local, "land").events() == [event]


def test_a_damaged_segment_is_named(local):
    land(local)
    LabelStore(local, "land").append([said("a", "t", "field")])
    local.write("labels/land/events/000000001.parquet", b"PAR1")
    with pytest.raises(DamagedError, match=r"000000001\.parquet"):
        LabelStore(local, "land").events()


@pytest.mark.parametrize("listed", [[1, 3, 4], [2, 3], [4]])
def test_a_listing_with_a_gap_hides_no_segment(local, listed):
    land(local)
    writer, events = LabelStore(local, "land"), [said("a", f"t{number}", "field") for number in range(4)]
    for event in events:
        writer.append([event])

    class Gappy:
        def __getattr__(self, name):
            return getattr(local, name)

        def list(self, prefix):
            keys = local.list(prefix)
            return [keys[number - 1] for number in listed] if prefix.endswith("events/") else keys

    assert LabelStore(Gappy(), "land").events() == events


def test_a_damaged_history_stops_nobody(local):
    land(local)
    writer, events = LabelStore(local, "land"), [said("a", f"t{number}", "field") for number in range(6)]
    for number, event in enumerate(events, 1):
        writer.append([event])
        if number in {2, 4}:
            writer.compact()
    local.write("labels/land/history/000000004.parquet", b"PAR1")
    assert LabelStore(local, "land").events() == events
    local.write("labels/land/history/000000002.parquet", b"")
    assert LabelStore(local, "land").events() == events
