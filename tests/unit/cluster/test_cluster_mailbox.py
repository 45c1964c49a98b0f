"""What the driver does with what it is told: one message that it fails at costs no other."""

from __future__ import annotations

import threading

import pytest

from rayjobs.cluster import mailbox
from rayjobs.cluster.mailbox import Mailbox, hear_each


def test_a_message_that_cannot_be_heard_costs_no_other(caplog):
    heard = []

    def hear(message):
        if message["kind"] == "odd":
            raise KeyError("odd")
        heard.append(message["kind"])

    hear_each([{"kind": "epoch"}, {"kind": "odd"}, {"kind": "failed"}], hear)
    assert heard == ["epoch", "failed"]
    assert "'odd'" in caplog.text


@pytest.fixture
def kept():
    """The actor's own class, without Ray."""
    return Mailbox.__ray_metadata__.modified_class()


def test_a_failure_is_a_message_and_is_remembered(kept):
    error = ValueError("x")
    assert kept.failed() == set()
    kept.fail(1, error)
    assert kept.take() == [{"kind": "failed", "error": error}]
    assert kept.take() == []
    assert kept.failed() == {1}


class Ray:
    """What `listening` needs of Ray: calls that answer at once."""

    def __init__(self, actor):
        self._actor = actor

    def __getattr__(self, name):
        return type("Call", (), {"remote": staticmethod(getattr(self._actor, name))})


def test_a_block_that_is_interrupted_waits_for_no_message(kept, monkeypatch):
    stuck, free = threading.Event(), threading.Event()
    options = type("Class", (), {"options": staticmethod(lambda **_: type("Made", (), {"remote": staticmethod(lambda: Ray(kept))}))})
    monkeypatch.setattr(mailbox, "Mailbox", options)
    monkeypatch.setattr(mailbox, "NodeAffinitySchedulingStrategy", lambda *_, **__: None)
    context = type("Context", (), {"get_node_id": lambda _: ""})
    monkeypatch.setattr(mailbox.ray, "get_runtime_context", context)
    monkeypatch.setattr(mailbox.ray, "get", lambda value: value)
    monkeypatch.setattr(mailbox.ray, "kill", lambda _: None)

    def hear(_):
        stuck.set()
        free.wait()

    def interrupt():
        assert stuck.wait(60)
        raise KeyboardInterrupt

    kept.post({"kind": "epoch"})
    with pytest.raises(KeyboardInterrupt), mailbox.listening(hear, every_s=0.001):
        interrupt()
    free.set()
