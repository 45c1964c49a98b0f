"""Checks as values: none hinders another, none tells a secret, and they are told in aligned lines."""

from __future__ import annotations

import pytest

from rayjobs.doctor.checks import Check, caution, fault, looked, ok, table, without_secrets
from rayjobs.errors import StorageError


def test_a_look_that_fails_is_a_fault_and_the_others_are_made():
    def broken():
        raise ZeroDivisionError("by zero\nand more")

    def ours():
        raise StorageError("the bucket 'b' does not exist; create it")

    found = list(looked({"a/1": broken, "a/2": ours, "a/3": lambda: [ok("x", "good"), caution("y", "odd", "look")]}))
    assert found == [
        fault("a/1", "ZeroDivisionError: by zero", "run the command again with --verbose, which shows what the libraries say"),
        fault("a/2", "the bucket 'b' does not exist", "create it"),
        ok("x", "good"),
        caution("y", "odd", "look"),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("http://me:pass@host:5000/x does not answer", "http://***@host:5000/x does not answer"),
        ("read https://h/scene.tif?sig=abc&se=1 fails", "read https://h/scene.tif?... fails"),
        ("the key hunter2-hunter2 is refused", "the key *** is refused"),
        ("s3://bucket/prefix is there", "s3://bucket/prefix is there"),
    ],
)
def test_no_secret_is_told(monkeypatch, text, told):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    assert without_secrets(text) == told
    [check] = looked({"a": lambda: fault("a", text, text)})
    assert check == fault("a", told, told)


def test_the_table_is_aligned_and_says_what_to_do_below():
    checks = [ok("a/b", "good"), Check(name="family/thing", state="fault", finding="word " * 30, remedy="do this")]
    lines = table(checks, columns=80)
    assert lines[0] == "ok       a/b           good"
    assert lines[1].startswith("fault    family/thing  word word")
    assert all(len(line) <= 80 for line in lines)
    assert lines[-1] == " " * 23 + "-> do this"
    assert table([], columns=80) == []
