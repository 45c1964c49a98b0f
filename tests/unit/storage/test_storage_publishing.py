from __future__ import annotations

import multiprocessing
import os

import pytest

from rayjobs.errors import PublishConflictError, StorageError
from rayjobs.storage import Artefact, deposit, digest_of, keep_first, open_store
from tests.unit.storage.storage_faulty import ANSWERED_TWICE, Faulty

ROUNDS = 40
VERSION = "d{:03d}"


def write_round(artefact, number, writer, barrier):
    """Write one version as another process does at the same time: two files of the driver, and a part that any worker may make."""
    draft = artefact.draft(VERSION.format(number))
    ours = f"{number} {writer} ".encode() * (1 if number % 2 else 2_000)
    barrier.wait()
    for name in "ab" if writer == "A" else "ba":
        draft.write(name, ours)
    draft.add([digest_of("part", keep_first(artefact.store, f"{draft.prefix}part", ours).data)])
    return draft.publish({"writer": writer, "counts": {}})


def write_rounds(uri, environment, writer, barrier, answers):
    os.environ.update(environment)
    artefact = Artefact(open_store(uri), "embeddings", "raced")
    for number in range(ROUNDS):
        try:
            version = write_round(artefact, number, writer, barrier)
            answers.put((number, version.manifest["writer"], version.files))
        except StorageError as error:
            answers.put((number, repr(error), ()))
        barrier.wait()


def whole(version):
    """The writer of a version; fails where it is not one writer's throughout."""
    number, writer = int(version.version[1:]), version.manifest["writer"]
    for name in "ab":
        assert set(version.read(name).split()) == {str(number).encode(), writer.encode()}
    assert len(set(version.read("part").split()) - {str(number).encode()}) == 1
    return writer


def test_of_two_writers_of_one_version_one_content_wins(store, environment):
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2, timeout=120), context.Queue()
    writers = [context.Process(target=write_rounds, args=(store.uri, environment, name, barrier, answers)) for name in "AB"]
    for writer in writers:
        writer.start()
    artefact = Artefact(store, "embeddings", "raced")
    told, seen = [], []
    while any(writer.is_alive() for writer in writers):
        while not answers.empty():
            told.append(answers.get())
        version = artefact.current()
        if version is not None:
            seen.append((version.version, whole(version)))
    while len(told) < 2 * ROUNDS:
        told.append(answers.get(timeout=60))
    versions = {number: artefact.at(VERSION.format(number)) for number in range(ROUNDS)}
    # both were told of the version that stands, and it is the one that readers saw
    assert sorted(told, key=str) == sorted(
        [(number, version.manifest["writer"], version.files) for number, version in versions.items()] * 2, key=str
    )
    assert set(seen) <= {(version.version, whole(version)) for version in versions.values()}
    assert len(set(seen)) > 5
    assert artefact.current().version == VERSION.format(ROUNDS - 1)


def test_who_publishes_second_gets_the_version_that_stands(store):
    artefact = Artefact(store, "embeddings", "e")
    first, second = artefact.draft("D"), artefact.draft("D")
    first.write("part", b"first")
    second.write("part", b"second")
    second.write("more", b"second")
    winner = second.publish({"by": "second"})
    loser = first.publish({"by": "first"})
    assert loser.manifest == winner.manifest == artefact.current().manifest
    assert loser.read("part") == loser.read("more") == b"second"


def test_parts_that_any_worker_may_make_are_the_first_workers(store):
    assert keep_first(store, "e/part", b"mine") == store.read_tagged("e/part")
    assert keep_first(store, "e/part", b"yours").data == b"mine"
    assert store.read("e/part") == b"mine"


def test_a_deposit_overwrites_nothing(store):
    taken, aside = deposit(store, "v/", "sub/f", b"one"), deposit(store, "v/", "sub/f", b"two")
    assert (taken.name, aside.name) == ("sub/f", "sub/f")
    assert taken == deposit(store, "v/", "sub/f", b"one")
    assert [store.read(f"v/{entry.location}") for entry in (taken, aside)] == [b"one", b"two"]
    assert store.size("v/sub/f") == 3


def test_what_a_broken_off_draft_left_is_used_where_equal_and_never_trusted(store):
    artefact = Artefact(store, "runs/r", "checkpoints")
    broken = artefact.draft("epoch-0003")
    broken.write("model.json", b"same")
    broken.write("state.pt", b"of an epoch that was lost")
    again = artefact.draft("epoch-0003")
    assert again.write("model.json", b"same").location == "model.json"
    again.write("state.pt", b"of the epoch's second run")
    version = again.publish({})
    assert version.read("state.pt") == artefact.current().read("state.pt") == b"of the epoch's second run"


def test_going_back_to_an_earlier_version_changes_none(store):
    artefact = Artefact(store, "sets", "s")

    def publish(version, experiment):
        draft = artefact.draft(version)
        draft.write("tiles", version.encode())
        draft.write("experiment.yaml", experiment)
        return draft.publish({"experiment": experiment.decode()})

    publish("v1", b"first")
    publish("v2", b"second")
    back = publish("v1", b"first, with a key that decides nothing")
    assert artefact.current().manifest == back.manifest
    assert back.manifest["experiment"] == "first"
    assert back.read("experiment.yaml") == store.read("sets/s/v1/experiment.yaml") == b"first"
    assert artefact.at("v2").read("tiles") == b"v2"


@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_a_damaged_version_is_made_whole_by_publishing_it_again(store, damage):
    artefact = Artefact(store, "sets", "s")
    draft = artefact.draft("v1")
    draft.write("tiles", b"good")
    draft.publish({})
    if damage == "altered":
        store.write("sets/s/v1/tiles", b"evil")
    else:
        store.delete("sets/s/v1/tiles")
    again = artefact.draft("v1")
    again.write("tiles", b"good")
    again.publish({})
    assert artefact.current().read("tiles") == b"good"


def test_another_version_published_meanwhile_is_a_conflict(store):
    artefact = Artefact(store, "sets", "s")
    late = artefact.draft("late")
    late.write("tiles", b"1")
    early = artefact.draft("early")
    early.write("tiles", b"2")
    early.publish({})
    with pytest.raises(PublishConflictError, match="changed to early while late was written"):
        late.publish({})
    assert artefact.current().version == "early"
    again = artefact.draft("late")
    again.write("tiles", b"1")
    assert again.publish({}).version == artefact.current().version == "late"


def test_writes_that_arrived_without_their_answer_are_ours(store):
    faulty = Faulty(store, *[ANSWERED_TWICE] * 3)
    draft = Artefact(faulty, "sets", "s").draft("v1")
    draft.write("tiles", b"good")
    version = draft.publish({})
    assert not faulty.faults
    assert version.entry("tiles").location == "tiles"
    assert Artefact(store, "sets", "s").current().manifest == version.manifest


def test_a_large_file_is_uploaded_where_it_can_overwrite_nothing(store, tmp_path):
    path = tmp_path / "big"
    artefact = Artefact(store, "indexes", "i")
    drafts = [artefact.draft("D"), artefact.draft("D")]
    for draft, data in zip(drafts, (b"first", b"other"), strict=True):
        path.write_bytes(data)
        draft.upload("big", path)
    assert drafts[0].publish({}).read("big") == b"first"
    assert drafts[1].publish({}).read("big") == b"first"


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        open_store(f"file:{tmp_path}/file").swap("runs/lease", b"", expected=None)


def test_conditional_writes_leave_one_lock_in_a_folder(tmp_path):
    store = open_store(f"file:{tmp_path}")
    for name in "abc":
        store.swap(f"v/{name}", b"", expected=None)
    assert len(list((tmp_path / "v").iterdir())) == 4
    assert store.list() == ["v/a", "v/b", "v/c"]
