from __future__ import annotations

import collections
import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayjobs.labels.current import Tally, current_labels
from tests.unit.labels.saying import said

UNHURRIED = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


def naive(events, renamed):
    """Current labels by looking through all events for each tile, from the definition."""
    undone = {event.undoes for event in events}
    found = {}
    for tile in {event.tile_id for event in events}:
        votes = {}
        for event in events:
            if event.tile_id == tile and event.kind != "undo" and event.event_id not in undone:
                votes[event.person] = renamed.get(event.label, event.label)
        if votes:
            ranked = collections.Counter(votes.values()).most_common()
            tie = len(ranked) > 1 and ranked[0][1] == ranked[1][1]
            found[tile] = (None if tie else ranked[0][0], ranked[0][1] / len(votes), tuple(sorted(votes)))
    return found


@st.composite
def histories(draw):
    """Events of three people about three tiles; some undo an earlier one of theirs."""
    events = []
    for _ in range(draw(st.integers(0, 30))):
        person, tile = draw(st.sampled_from("abc")), draw(st.sampled_from(["t1", "t2", "t3"]))
        own = [event for event in events if event.person == person and event.tile_id == tile and event.kind != "undo"]
        if own and draw(st.booleans()):
            events.append(said(person, tile, undoes=draw(st.sampled_from(own))))
        else:
            events.append(said(person, tile, draw(st.sampled_from(["field", "meadow", "water", None]))))
    return events


@pytest.mark.parametrize("renamed", [{}, {"meadow": "field"}])
@UNHURRIED
@given(events=histories())
def test_current_labels_are_those_of_a_naive_model(renamed, events):
    found = current_labels(events, renamed=renamed)
    assert {tile: (one.label, one.agreement, one.people) for tile, one in found.items()} == naive(events, renamed)


@UNHURRIED
@given(events=histories())
def test_counts_follow_each_event(events):
    tally = Tally()
    for event in events:
        tally.add(event)
        assert +tally.by_class == collections.Counter(one.label for one in tally.current.values())


def test_a_persons_later_word_counts_and_undoing_it_brings_back_the_one_before():
    first, second = said("a", "t", "field"), said("a", "t", "water")
    assert current_labels([first, second])["t"].label == "water"
    assert current_labels([first, second, said("a", "t", undoes=second)])["t"].label == "field"
    assert current_labels([first, said("a", "t", undoes=first)]) == {}


def test_of_three_two_agree():
    found = current_labels([said("a", "t", "field"), said("b", "t", "water"), said("c", "t", "field")])["t"]
    assert (found.label, found.agreement, found.votes) == ("field", 2 / 3, {"field": 2, "water": 1})
    assert current_labels([said("a", "t", "field"), said("b", "t")])["t"].label is None


def test_pace_looks_at_the_last_ten_minutes():
    begun = datetime.datetime(2026, 1, 1, 9, tzinfo=datetime.UTC)
    morning = [said("a", "t", at=begun + datetime.timedelta(seconds=second)) for second in range(10)]
    later = [said("a", "t", at=begun + datetime.timedelta(hours=2, seconds=20 * step)) for step in range(7)]
    pace = Tally([*morning, *later, said("b", "t")]).pace()
    assert (pace["a"].events, pace["a"].per_minute) == (17, 3.0)
    assert pace["b"].per_minute is None
