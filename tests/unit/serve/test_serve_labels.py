"""Labels over HTTP, in front of the index of `served_index`: eleven tiles, and one that was deleted."""

from __future__ import annotations

import csv
import io
import json
import urllib.parse
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from rayjobs.labels.leases import Leases
from rayjobs.labels.queue import FILE, queue_of
from rayjobs.serve import labelling
from rayjobs.serve.api import current_service
from rayjobs.serve.bodies import BodyLimits
from rayjobs.serve.labelling import Labelling
from rayjobs.serve.limits import Gate
from rayjobs.serve.tokens import tokens_of
from rayjobs.storage import open_store
from tests.unit.serve.served_index import IDS, VECTORS
from tests.unit.serve.service_double import application_in

ALIVE = [tile for tile in IDS if tile != IDS[3]]
CLASSES = [{"name": "positive"}, {"name": "negative"}]
LIMITS = BodyLimits(max_bytes=10_000, pause_s=5.0, whole_s=60.0)


@pytest.fixture(scope="module")
def application(tmp_path_factory):
    return application_in(tmp_path_factory.mktemp("served"))


@pytest.fixture
def ask(application, tmp_path):
    store = open_store(f"file:{tmp_path}")
    application.dependency_overrides[current_service]().labelling = Labelling(store, lease_s=60.0)
    client = TestClient(application, raise_server_exceptions=False)

    def asked(method, path, body=None, *, person="anna", status=200):
        answer = client.request(method, path, json=body, headers={"x-rayjobs-person": person} if person else {})
        assert answer.status_code == status, answer.text
        return answer.json() if "json" in answer.headers["content-type"] else answer

    asked.store, asked.application = store, application
    asked("POST", "/v1/labels", {"name": "ponds", "classes": CLASSES}, status=201)
    return asked


def event(tile, label="positive", *, kind="label", **more):
    return {"event_id": str(uuid.uuid4()), "tile_id": tile, "kind": kind, **({"label": label} if kind == "label" else {}), **more}


def test_a_taxonomy_is_listed_with_its_progress(ask):
    answer = ask("GET", "/v1/labels")
    [found] = answer["taxonomies"]
    assert answer["person"] is None
    assert (found["name"], found["version"], [one["name"] for one in found["classes"]]) == ("ponds", 1, ["positive", "negative"])
    assert [one["key"] for one in found["classes"]] == ["1", "2"]
    assert found["progress"] == {"labelled": 0, "unsure": 0, "leased": 0, "left": 11, "total": 11}


def test_a_damaged_taxonomy_hides_no_other(ask):
    ask("POST", "/v1/labels", {"name": "seas", "classes": CLASSES}, status=201)
    ask.store.write("labels/lakes/taxonomy/00001.json", b"[")
    for name in ("lakes", "gone"):
        ask.store.write(f"labels/taxonomies/{name}.json", b"{}")
    ask.store.write("labels/seas/events/000000001.parquet", b"PAR1")
    ask.store.write("labels/ponds/leases/current.json", b"[1")
    assert [one["name"] for one in ask("GET", "/v1/labels")["taxonomies"]] == ["ponds"]
    assert "lakes/taxonomy/00001.json is no version" in ask("GET", "/v1/labels/lakes/progress", status=503)["detail"]


def test_a_taxonomy_has_versions(ask):
    assert ask("POST", "/v1/labels", {"name": "ponds", "classes": CLASSES}, status=201)["version"] == 1
    more = [*CLASSES, {"name": "lake", "description": "larger than a tile"}]
    assert ask("POST", "/v1/labels", {"name": "ponds", "classes": more}, status=201)["version"] == 2
    assert "must go on" in ask("POST", "/v1/labels", {"name": "ponds", "classes": more[1:]}, status=400)["detail"]


def test_two_people_are_handed_all_tiles_and_none_twice(ask):
    anna = ask("POST", "/v1/labels/ponds/next", {"count": 6})
    ben = ask("POST", "/v1/labels/ponds/next", {"count": 64}, person="ben")
    tiles = [item["tile_id"] for item in anna["items"] + ben["items"]]
    assert sorted(tiles) == ALIVE
    assert ben["progress"] == {"labelled": 0, "unsure": 0, "leased": 11, "left": 0, "total": 11}
    assert ask("POST", "/v1/labels/ponds/next", {})["items"] == []
    item = anna["items"][0]
    assert item["geometry"]["type"] == "Polygon"
    assert item["scene_id"] == "scene"
    assert item["datetime"].startswith("2020-01-")
    assert item["suggestion"] is None


def test_labels_are_taken_down_once(ask):
    items = ask("POST", "/v1/labels/ponds/next", {"count": 3})["items"]
    events = [event(item["tile_id"], lease=item["lease"]) for item in items[:2]]
    events.append(event(items[2]["tile_id"], kind="unsure", lease=items[2]["lease"]))
    done = ask("POST", "/v1/labels/ponds/events", {"events": events})
    assert (done["accepted"], done["already"]) == (3, 0)
    assert done["progress"] == {"labelled": 2, "unsure": 1, "leased": 0, "left": 8, "total": 11}
    assert ask("POST", "/v1/labels/ponds/events", {"events": events})["already"] == 3
    rest = ask("POST", "/v1/labels/ponds/next", {"count": 64}, person="ben")["items"]
    assert not {item["tile_id"] for item in rest} & {item["tile_id"] for item in items}


def test_who_comes_after_somebody_else_is_told(ask):
    items = ask("POST", "/v1/labels/ponds/next", {"count": 2})["items"]
    ask("POST", "/v1/labels/ponds/events", {"events": [event(items[0]["tile_id"], "negative")]}, person="ben")
    late = [event(item["tile_id"], lease=item["lease"]) for item in items]
    told = ask("POST", "/v1/labels/ponds/events", {"events": late}, status=409)
    assert told["lost"] == [{"tile_id": items[0]["tile_id"], "labelled_by": ["ben"]}]
    assert ask("GET", "/v1/labels/ponds/events")["next"] == 1, "all is taken down or nothing"
    assert ask("POST", "/v1/labels/ponds/events", {"events": late[1:]})["accepted"] == 1


def test_what_was_undone_is_open_again_and_stays_with_its_person_for_the_lease(ask):
    [item] = ask("POST", "/v1/labels/ponds/next", {})["items"]
    given = event(item["tile_id"], lease=item["lease"])
    ask("POST", "/v1/labels/ponds/events", {"events": [given]})
    undo = event(item["tile_id"], kind="undo", undoes=given["event_id"])
    assert ask("POST", "/v1/labels/ponds/events", {"events": [undo]})["progress"]["leased"] == 1
    others = ask("POST", "/v1/labels/ponds/next", {"count": 64}, person="ben")["items"]
    assert item["tile_id"] not in [other["tile_id"] for other in others]
    assert ask("POST", "/v1/labels/ponds/release", {"leases": [item["lease"]]}) == {"released": 1}
    assert [other["tile_id"] for other in ask("POST", "/v1/labels/ponds/next", {}, person="ben")["items"]] == [item["tile_id"]]
    kinds = [(one["kind"], one["undoes"]) for one in ask("GET", "/v1/labels/ponds/events")["events"]]
    assert kinds == [("label", None), ("undo", given["event_id"])]


def test_a_page_that_is_loaded_anew_gets_its_tiles_back(ask):
    items = ask("POST", "/v1/labels/ponds/next", {"count": 3})["items"]
    more = ask("POST", "/v1/labels/ponds/next", {"count": 1, "held": [item["lease"] for item in items]})["items"]
    assert more[0]["tile_id"] not in [item["tile_id"] for item in items]
    ask("POST", "/v1/labels/ponds/events", {"events": [event(items[0]["tile_id"], lease=items[0]["lease"])]})
    again = ask("POST", "/v1/labels/ponds/next", {"count": 3, "held": []})["items"]
    assert {(one["tile_id"], one["lease"]) for one in again} == {(one["tile_id"], one["lease"]) for one in [*items[1:], *more]}


def test_a_tile_that_has_left_the_index_is_not_handed_out_again(ask):
    Leases(ask.store, "ponds").take("anna", lambda _: [IDS[3], IDS[4]])
    items = ask("POST", "/v1/labels/ponds/next", {"count": 2, "held": []})["items"]
    assert items[0]["tile_id"] == IDS[4]
    assert IDS[3] not in [item["tile_id"] for item in items]


def test_nobody_holds_everything(ask, monkeypatch):
    monkeypatch.setattr(labelling, "_MOST_IN_HAND", 4)
    items = ask("POST", "/v1/labels/ponds/next", {"count": 4})["items"]
    refused = ask("POST", "/v1/labels/ponds/next", {}, status=400)["detail"]
    assert "would have 5 tiles in hand, and may have 4; label or release some" in refused
    assert len(ask("POST", "/v1/labels/ponds/next", {"count": 4}, person="ben")["items"]) == 4
    ask("POST", "/v1/labels/ponds/events", {"events": [event(items[0]["tile_id"], lease=items[0]["lease"])]})
    ask("POST", "/v1/labels/ponds/release", {"leases": [items[1]["lease"]]})
    assert len(ask("POST", "/v1/labels/ponds/next", {"count": 2})["items"]) == 2


def test_the_grid_shows_look_alikes(ask):
    nearest = [IDS[row] for row in np.argsort(-(VECTORS @ VECTORS[5])) if row not in {3, 5}]
    items = ask("POST", "/v1/labels/ponds/next", {"count": 4, "like": IDS[5]})["items"]
    assert [item["tile_id"] for item in items] == nearest[:4]
    items = ask("POST", "/v1/labels/ponds/next", {"count": 3, "like": IDS[5], "order": "similar"}, person="ben")["items"]
    assert [item["tile_id"] for item in items] == nearest[4:7]
    ask("POST", "/v1/labels/ponds/next", {"like": IDS[3]}, status=404)
    ask("POST", "/v1/labels/ponds/next", {"order": "similar"}, status=400)


def queue(store, tiles, version="round-1", **columns):
    sink = io.BytesIO()
    pq.write_table(pa.table({"tile_id": tiles, "rank": list(range(len(tiles))), **columns}), sink)
    draft = queue_of(store, "ponds").draft(version)
    draft.write(FILE, sink.getvalue())
    draft.publish({"parents": {}, "counts": {"tiles": len(tiles)}})


def test_the_queue_comes_first_with_its_suggestions(ask):
    queue(ask.store, [IDS[7], IDS[3], IDS[2], "f" * 20], probability=[0.9, 0.5, 0.2, 0.1])
    items = ask("POST", "/v1/labels/ponds/next", {"count": 4})["items"]
    assert [item["tile_id"] for item in items[:2]] == [IDS[7], IDS[2]]
    assert items[0]["suggestion"] == {"label": "positive", "probability": 0.9}
    assert items[1]["suggestion"] == {"label": "negative", "probability": 0.8}
    assert [item["suggestion"] for item in items[2:]] == [None, None]
    queue(ask.store, [IDS[9]], "round-2", probability=[0.7], label=["negative"])
    free = [tile for tile in ALIVE if tile not in {item["tile_id"] for item in items}]
    [item] = ask("POST", "/v1/labels/ponds/next", {}, person="ben")["items"]
    if IDS[9] in free:
        assert (item["tile_id"], item["suggestion"]["label"]) == (IDS[9], "negative")


def test_a_suggestion_has_the_name_that_its_class_has_now(ask):
    """Also where the queue was read before: it is kept until there is another."""

    def suggested():
        [item] = ask("POST", "/v1/labels/ponds/next", {"held": []})["items"]
        return item["suggestion"]["label"]

    queue(ask.store, [IDS[7]], probability=[0.9], label=["positive"])
    assert suggested() == "positive"
    for name in ("pond", "lake"):
        classes = [{"name": name, "formerly": ["positive", "pond"][: 1 + (name == "lake")]}, {"name": "negative"}]
        ask("POST", "/v1/labels", {"name": "ponds", "classes": classes}, status=201)
        assert suggested() == name
    for version, more in (("round-2", {"label": ["pond"]}), ("round-3", {})):
        queue(ask.store, [IDS[7]], version, probability=[0.9], **more)
        assert suggested() == "lake", "of a queue that names the class as it was, or none: of positive"


def test_progress_by_person_and_class(ask):
    ask("POST", "/v1/labels/ponds/events", {"events": [event(IDS[0]), event(IDS[1], "negative"), event("f" * 20)]})
    ask("POST", "/v1/labels/ponds/events", {"events": [event(IDS[0], origin="search")]}, person="ben")
    found = ask("GET", "/v1/labels/ponds/progress")
    assert found["by_class"] == {"positive": 2, "negative": 1}
    assert {name: one["events"] for name, one in found["by_person"].items()} == {"anna": 3, "ben": 1}
    assert (found["labelled"], found["left"]) == (2, 9), "a tile that the index does not hold is labelled, and not counted"


def test_the_audit_is_paged(ask):
    for number in range(3):
        ask("POST", "/v1/labels/ponds/events", {"events": [event(IDS[number])]})
    first = ask("GET", "/v1/labels/ponds/events?limit=2")
    assert ([one["tile_id"] for one in first["events"]], first["next"], first["more"]) == (IDS[:2], 2, True)
    rest = ask("GET", "/v1/labels/ponds/events?since=2")
    assert ([one["tile_id"] for one in rest["events"]], rest["next"], rest["more"]) == ([IDS[2]], 3, False)
    assert (rest["events"][0]["person"], rest["events"][0]["origin"]) == ("anna", "page")


def test_exports(ask):
    ask("POST", "/v1/labels/ponds/events", {"events": [event(IDS[0]), event(IDS[1], kind="unsure"), event("f" * 20, "negative")]})
    answer = ask("GET", "/v1/labels/ponds/export")
    assert answer.headers["content-type"].startswith("text/csv")
    assert [(row["tile_id"], row["label"]) for row in csv.DictReader(io.StringIO(answer.text))] == [
        (IDS[0], "positive"),
        (IDS[1], ""),
        ("f" * 20, "negative"),
    ]
    features = json.dumps(ask("GET", "/v1/labels/ponds/export?format=geojson"))
    found = {one["id"]: one for one in json.loads(features)["features"]}
    assert found[IDS[0]]["geometry"]["type"] == "Polygon"
    assert found["f" * 20]["geometry"] is None
    assert found[IDS[1]]["properties"]["label"] is None


def test_nobody_labels_without_a_name(ask):
    assert "who labels" in ask("POST", "/v1/labels/ponds/next", {}, person=None, status=400)["detail"]
    assert "cannot be a person" in ask("POST", "/v1/labels/ponds/next", {}, person="<b>", status=400)["detail"]
    ask("POST", "/v1/labels/ponds/events", {"events": [event(IDS[0])]}, person="%C5%81ukasz")
    assert list(ask("GET", "/v1/labels/ponds/progress")["by_person"]) == ["Łukasz"]


def test_nobody_labels_under_the_name_of_somebody_else(ask):
    tokens = tokens_of({"RAYJOBS_TOKEN": "all", "RAYJOBS_LABEL_TOKENS": "anna:annas,ben:bens"}, required=True)
    client = TestClient(Gate(ask.application, body=LIMITS, uploads=LIMITS, tokens=tokens), raise_server_exceptions=False)

    def status(token, person=None):
        headers = {"authorization": f"Bearer {token}"} | ({"x-rayjobs-person": person} if person else {})
        answer = client.post("/v1/labels/ponds/events", json={"events": [event(IDS[0])]}, headers=headers)
        assert answer.status_code == 200 or answer.headers["content-type"] == "application/problem+json"
        return answer.status_code, answer.json().get("detail", "")

    assert status("annas") == status("annas", "anna") == status("all", "carl") == (200, "")
    assert status("annas", "ben")[0] == 403
    assert "the token is anna's, and X-Rayjobs-Person says ben" in status("annas", "ben")[1]
    assert "ben has a token of their own" in status("all", "ben")[1]
    assert (status("all", "ben")[0], status("all")[0]) == (403, 400)
    assert list(ask("GET", "/v1/labels/ponds/progress")["by_person"]) == ["anna", "carl"]


def test_a_name_of_any_letters_has_room(ask):
    name = "Ж" * 64
    ask("POST", "/v1/labels/ponds/events", {"events": [event(IDS[0])]}, person=urllib.parse.quote(name))
    assert list(ask("GET", "/v1/labels/ponds/progress")["by_person"]) == [name]


@pytest.mark.parametrize("path", ["next", "events", "release", "progress", "export"])
def test_an_unknown_taxonomy_is_404(ask, path):
    bodies = {"next": {}, "events": {"events": [event(IDS[0])]}, "release": {"leases": ["0" * 32]}}
    detail = ask("POST" if path in bodies else "GET", f"/v1/labels/seas/{path}", bodies.get(path), status=404)["detail"]
    assert "no taxonomy 'seas'" in detail


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "label", "label": None},
        {"kind": "unsure", "label": "positive"},
        {"kind": "undo", "label": None},
        {"kind": "undo", "label": None, "undoes": str(uuid.uuid4())},
        {"label": "town"},
    ],
)
def test_events_that_cannot_be_are_refused(ask, wrong):
    ask("POST", "/v1/labels/ponds/events", {"events": [event(IDS[0]) | wrong]}, status=400)
    assert ask("GET", "/v1/labels/ponds/events")["events"] == []
