"""A service whose index is swapped under load, damaged or half published, whose processes are killed, and that strangers abuse."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import time
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
import ray

from rayjobs.serve.answers import Answers
from tests.faults.conftest import FULL
from tests.faults.serving import LIMIT, OF_ADMIN, OF_READER, READER, Clients, Library, head, service
from tests.page.small_index import built, published

CLIENTS = 8
_BUSY = 1 if FULL else 4
"""The short form allows machines that others use several times the pass line."""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    made = Library(tmp_path_factory.mktemp("library"))
    made.publish(1)
    return made


@pytest.fixture(scope="module")
def served(library):
    """Two processes that search, behind HAProxy."""
    with head() as (cluster, _), service(cluster, library, replicas=2, proxy="haproxy", access_log="false") as running:
        yield running


@pytest.mark.fault("S1")
def test_the_index_is_swapped_under_load(served, library, row):
    """No request fails, each is answered from exactly one version, a pin is honoured or refused, images go with their encoder."""
    pids = served.replicas("Ingress"), served.replicas("Encoder")
    seconds, spans, pinned = [], [], []
    with Clients(served, CLIENTS) as clients:
        time.sleep(3)
        for swap in range(row.tries):
            before = served.get("/healthz").json()["index_version"]
            version = library.publish(100 + swap)
            begun = time.monotonic()
            assert served.refresh()["index_version"] == version
            seconds.append(served.wait_for(lambda version=version: served.serves(version), version))
            spans.append((begun, time.monotonic()))
            pinned += [served.ask(index_version=name) for name in (before, version, "no-such-version")]
            found = httpx.post(
                f"{served.url}/v1/search/image", files={"image": library.picture()}, data={"limit": "1"}, headers=OF_READER, timeout=30
            ).json()
            [hit] = found["features"]
            assert (found["index_version"], hit["id"]) == (version, library.query)
            assert hit["properties"]["score"] > 0.999, "the image was embedded by another encoder"
    assert not clients.failed, clients.failed[:3]
    clients.assert_whole()
    assert (served.replicas("Ingress"), served.replicas("Encoder")) == pids, "no process was started anew"
    for answer, wanted in zip(pinned, itertools.cycle([200, 200, 409]), strict=False):
        assert answer.status_code == wanted, answer.text
    calm, swapping = clients.p99((0, spans[0][0])), clients.p99(*spans)
    row.lost = f"0 of {len(clients.asked):,} requests; p99 {1e3 * calm:.0f} ms before, {1e3 * swapping:.0f} ms while swapping"
    row.recovered = f"all processes agree after {max(seconds):.1f} s at most"
    if FULL:
        assert swapping <= 2 * calm


_PUBLICATIONS_S = 0.5
"""As long as some publications take: kills fall anywhere in them."""


def publish_for_ever(source, indexes, told):
    """Publish one index after the other, of several that are built, until killed; each is told of before."""
    for number, (which, (files, fields)) in enumerate(itertools.cycle(enumerate(indexes))):
        name = f"killed-{number}-{os.getpid()}"
        told.send((name, which))
        published(source, files, fields, version=name)


@pytest.mark.fault("S2")
def test_the_publisher_is_killed_at_any_moment(served, library, row, tmp_path):
    """A process that loads what is current finds the old version or the new one, whole; the service follows."""
    context = multiprocessing.get_context("forkserver")  # a thousand processes that each import all anew would take hours
    context.set_forkserver_preload([__name__])
    encoders = [library.encoder(seed) for seed in (1001, 1002)]
    indexes, expected = [built(library.source, files) for files in encoders], [library.nearest(files) for files in encoders]
    seen = []
    with Clients(served, 2) as clients:
        for _ in range(row.tries):
            here, there = context.Pipe()
            writer = context.Process(target=publish_for_ever, args=(library.source, indexes, there))
            writer.start()
            there.close()
            assert here.poll(120)
            time.sleep(random.uniform(0, _PUBLICATIONS_S))
            writer.kill()
            writer.join()
            with contextlib.suppress(EOFError):
                while True:
                    name, which = here.recv()
                    library.expected[name] = expected[which]
            current = library.index.current()
            answers = Answers(current, cache=tmp_path, max_limit=LIMIT)
            vector, without = answers.query_vector([_tile(library.query)])
            found = answers.search(vector, _limited(), without=without)
            assert library.expected[current.version].allows([feature.id for feature in found.features])
            seen.append(current.version)
        last = library.publish(5000)
        served.refresh()
        served.wait_for(lambda: served.serves(last), last)
    assert not clients.failed, clients.failed[:3]
    clients.assert_whole()
    assert len(set(seen)) > 1, "some publications came to their end before the kill"
    row.lost = f"nothing: {len(seen)} times the current version was whole, and 0 of {len(clients.asked):,} requests failed"


def _tile(tile_id):
    from rayjobs.serve.schema import Example

    return Example(tile_id=tile_id)


def _limited():
    from rayjobs.serve.schema import Filters

    return Filters(limit=LIMIT)


def _cut(folder, pattern):
    for path in folder.glob(pattern):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(folder, pattern):
    for path in folder.glob(pattern):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))


def _empty(folder, pattern):
    for path in folder.glob(pattern):
        path.write_bytes(b"")


def _other_dimension(folder):
    path = folder / "manifest.json"
    said = json.loads(path.read_text())
    said["index"]["dimension"] += 1
    path.write_text(json.dumps(said))


def _vectors_of_another(folder):
    """Vectors that are whole, and that this encoder did not make."""
    import hashlib

    import faiss

    from rayjobs.retrieval.kinds import KINDS

    path = next(folder.rglob("*.vectors"))
    index = KINDS["flat"].read(path)
    vectors = index.reconstruct_n(0, index.ntotal)[::-1]
    other = faiss.IndexFlatIP(index.d)
    other.add(np.ascontiguousarray(vectors))
    data = KINDS["flat"].dumped(other)
    path.write_bytes(data)
    manifest = folder / "manifest.json"
    said = json.loads(manifest.read_text())
    for entry in said["files"]:
        if entry["name"].endswith(".vectors"):
            entry |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    manifest.write_text(json.dumps(said))


DAMAGES = {
    "cut short": lambda folder: _cut(folder, "*.vectors"),
    "a bit of the vectors": lambda folder: _flip(folder, "*.vectors"),
    "a bit of the metadata": lambda folder: _flip(folder, "*.parquet"),
    "empty": lambda folder: _empty(folder, "*.parquet"),
    "another dimension": _other_dimension,
    "another encoder's vectors": _vectors_of_another,
}


@pytest.mark.fault("S3")
def test_a_bad_index_is_published(served, library, row):
    """It is refused, and said; the version before stays, of the same processes."""
    good = library.publish(200)
    served.refresh()
    served.wait_for(lambda: served.serves(good), good)
    pids = served.replicas("Ingress"), served.replicas("Encoder")
    with Clients(served, CLIENTS) as clients:
        for number, (what, damage) in enumerate(DAMAGES.items()):
            library.make_current(good)
            bad = library.damaged(300 + number, damage)
            target = served.refresh()
            assert target["index_version"] == good, what
            assert target["last_error"].startswith(f"refused {bad}: "), what
            served.wait_for(lambda bad=bad: bad in (served.get("/healthz").json()["last_error"] or ""), f"last_error of {what}")
        assert bad in served.get("/v1/info").json()["last_error"]
    assert not clients.failed, clients.failed[:3]
    clients.assert_whole()
    assert {one.version for one in clients.asked} == {good}
    assert (served.replicas("Ingress"), served.replicas("Encoder")) == pids, "no process was started anew"
    better = library.publish(400)
    served.refresh()
    served.wait_for(lambda: served.serves(better), better)
    assert served.get("/healthz").json()["last_error"] is None
    row.tries, row.lost = len(DAMAGES), f"0 of {len(clients.asked):,} requests"


@pytest.mark.fault("S4")
def test_processes_are_killed(served, library, row):
    """Of those that search, of the proxy and of the controller: who asks once more, a second later, always gets an answer."""
    back = []
    with Clients(served, CLIENTS, retries=1) as clients:
        for _ in range(row.tries):
            killed = random.choice(served.replicas("Ingress"))
            os.kill(killed, signal.SIGKILL)
            back.append(served.wait_for(lambda killed=killed: len(set(served.replicas("Ingress")) - {killed}) == 2, "the process"))
            time.sleep(2)
        assert not clients.failed, clients.failed[:3]
        [controller] = served.cluster.processes("ray::ServeController")
        os.kill(controller, signal.SIGKILL)
        time.sleep(5)
        assert not clients.failed, clients.failed[:3]
    clients.assert_whole()
    out = _proxy_killed(served)
    row.lost = f"0 of {len(clients.asked):,} requests, each tried twice at most"
    row.recovered = f"{max(back):.1f} s until a process is back, {out:.1f} s without the proxy"
    assert max(back) <= 10 * _BUSY
    assert out <= 6 * _BUSY


def _proxy_killed(served):
    """Kill HAProxy; return the seconds in which nothing answers."""
    for proxy in served.haproxy():
        os.kill(proxy, signal.SIGKILL)
    return served.wait_for(lambda: _answers(served), "an answer")


def _answers(served):
    try:
        return served.ask().status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.fault("S6")
def test_more_is_asked_than_can_be_answered(library, row):
    """Ten times what there is room for: each request is answered, or told at once to come again; afterwards all is as before."""
    room = {"max_ongoing_requests": 4, "max_queued_requests": 8, "retry_after_s": 2}
    with head() as (cluster, _), service(cluster, library, proxy="haproxy", **room) as served:
        with Clients(served, 2) as calm:
            time.sleep(3)
        with Clients(served, 120) as clients:
            time.sleep(row.tries)
        with Clients(served, 2) as after:
            time.sleep(10)
    statuses = {one.status for one in clients.asked}
    refused = [one for one in clients.asked if one.status == 503]
    assert statuses <= {200, 503}, statuses
    assert refused, "there was room for all"
    assert all(one.retry_after == "2" for one in refused), {one.retry_after for one in refused}
    assert not after.failed
    assert clients.p99() < 30, "the time limit"
    row.lost = f"{len(refused):,} of {len(clients.asked):,} told to come again, none failed"
    row.recovered = f"p99 {1e3 * calm.p99():.0f} ms before, {1e3 * clients.p99():.0f} ms in between, {1e3 * after.p99():.0f} ms after"


def _claims(width, height):
    """A PNG that claims to be large."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\r" + header + zlib.crc32(header).to_bytes(4, "big") + b"\x00\x00\x00\x00IEND\xaeB`\x82"


def _vrt(port):
    source = f"<SimpleSource><SourceFilename>/vsicurl/http://127.0.0.1:{port}/x.tif</SourceFilename></SimpleSource>"
    band = f'<VRTRasterBand dataType="Byte" band="1">{source}</VRTRasterBand>'
    return f'<VRTDataset rasterXSize="9" rasterYSize="9">{band}</VRTDataset>'.encode()


def hostile(listener):
    """Requests that nobody means well with, each with the statuses that it may have."""
    words, port = random.Random(7), listener.getsockname()[1]
    images = [
        _claims(20_000, 20_000), _claims(2**31 - 1, 2**31 - 1), _claims(0, 0), b"", b"GIF89a" + b"\0" * 64, _vrt(port),
        b"II*\0" + b"\xff" * 400,
        b"\xff\xd8\xff\xe0" + b"\0" * 100, f"http://127.0.0.1:{port}/x.tif".encode(), f"/vsicurl/http://127.0.0.1:{port}/x.tif".encode(),
        b"/etc/passwd", os.urandom(5000), b"MM\0+" + os.urandom(100), b"%PDF-1.4" + _claims(8, 8),
    ]  # fmt: skip
    numbers = ["NaN", "Infinity", "-Infinity", "1e999", "-1", "0", "1e9", '"1"', "null", "true", "[]", "{}"]
    texts = ["../../etc/passwd", "..%2f..%2fetc", "\\u0000", "v/../x", "x" * 5000, "' OR 1=1", "${jndi:ldap://x}", "\\ud800", "☃"]
    while True:
        number, text = words.choice(numbers), words.choice(texts)
        yield from [
            ("POST", "/v1/search/image", {"files": {"image": ("x.tif", words.choice(images))}}),
            ("POST", "/v1/embed", {"files": {"image": ("../x.png", words.choice(images))}}),
            ("POST", "/v1/search", _body(f'{{"positives": [{{"embedding": [{number}, {number}]}}]}}')),
            ("POST", "/v1/search", _body(f'{{"positives": [{{"tile_id": "{text}"}}], "limit": {number}}}')),
            ("POST", "/v1/search", _body(f'{{"positives": [{{"embedding": [{", ".join(["1"] * 16)}]}}], "limit": {number}}}')),
            ("POST", "/v1/search", _body(f'{{"positives": [{{"tile_id": "{"0" * 20}"}}], "index_version": "{text}"}}')),
            ("POST", "/v1/search", _body(f'{{"positives": [{{"point": {{"lon": {number}, "lat": {number}}}}}]}}')),
            ("POST", "/v1/search", _body(f'{{"positives": [{{"tile_id": "{"0" * 20}"}}], "bbox": [{number}, 0, 1, 1]}}')),
            ("POST", "/v1/search", _body('{"positives":' * 500)),
            ("POST", "/v1/search", _body("[" * 100_000)),
            ("POST", "/v1/search/batch", _body(f'{{"searches": [{number}]}}')),
            ("POST", "/v1/search", {"content": os.urandom(200), "headers": {"content-type": "application/json"}}),
            ("GET", f"/v1/tiles/{words.choice(['..%2f..%2fetc', '%00', 'x' * 3000, '0' * 19])}", {}),
            ("GET", f"/v1/tiles/{words.choice(['..', '%2e%2e', '0' * 20])}/thumbnail.png", {}),
            ("GET", f"/v1/tiles?bbox={words.choice(['1,2,3', 'a,b,c,d', 'nan,0,1,1', '400,0,1,1'])}&limit={number}", {}),
            ("GET", f"/page/{words.choice(['..%2f..%2fapp.py', 'static/../x', '%00', 'overview/99999.png'])}", {}),
            ("GET", "/v1/info?" + "x" * 6000, {}),
            ("GET", "/v1/info", {"headers": {"x-request-id": "a" * 3000}}),
            ("DELETE", "/v1/search", {}), ("TRACE", "/", {}), ("GET", "/v1/search", {}),
        ]  # fmt: skip


def _body(text):
    return {"content": text.encode(), "headers": {"content-type": "application/json"}}


@pytest.mark.fault("S7")
def test_strangers_send_what_they_like(served, library, row):
    """Nothing makes the service fail, grow, read a file or fetch an address; who sends slowly is hung up on."""
    served.wait_for(lambda: len(served.replicas("Ingress")) == 2, "both processes")
    with socket.create_server(("127.0.0.1", 0)) as listener, httpx.Client(base_url=served.url, timeout=60) as client:
        listener.setblocking(False)  # noqa: FBT003
        requests = hostile(listener)
        statuses = [_status(client, next(requests)) for _ in range(60)]
        grown = served.memory()
        statuses += [_status(client, next(requests)) for _ in range(row.tries)]
        grown = served.memory() - grown
        with pytest.raises(BlockingIOError):
            listener.accept()
    failed = [status for status in statuses if not 400 <= status < 500 and status != 200]
    assert not failed, failed[:5]
    assert grown < 50 * 2**20, f"{grown / 2**20:.0f} MiB more"
    slow = _slow(served)
    assert slow < 5 + 2 * _BUSY
    assert served.ask().status_code == 200
    row.lost = f"no 5xx, no address fetched, {grown / 2**20:+.0f} MiB"
    row.recovered = f"a body that stalls is hung up on after {slow:.1f} s"


def _status(client, request):
    method, path, more = request
    return client.request(method, path, **{**more, "headers": {**OF_READER, **more.get("headers", {})}}).status_code


def _slow(served):
    """Send half a body; return the seconds until the service says 408."""
    address = httpx.URL(served.url)
    begun = time.monotonic()
    with socket.create_connection((address.host, address.port), timeout=60) as connection:
        lines = [
            "POST /v1/search HTTP/1.1",
            "host: x",
            f"authorization: Bearer {READER}",
            "content-type: application/json",
            "content-length: 99",
        ]
        connection.sendall("\r\n".join([*lines, "", "{"]).encode())
        answer = connection.recv(4096)
    assert b" 408 " in answer.split(b"\r\n")[0], answer
    return time.monotonic() - begun


@pytest.mark.fault("S8")
def test_who_has_no_token(served, row):
    """Neither our paths nor Ray's let anybody in; what listens beyond loopback are Ray's own processes, which ask for their token."""
    spec = httpx.get(f"{served.url}/openapi.json", headers=OF_READER, timeout=30).json()
    tried = 0
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {READER}"}):
        for path, methods in spec["paths"].items():
            for method in methods.keys() - ({"get"} if path == "/healthz" else set()):
                filled = re.sub(r"\{\w+\}", "0" * 20, path)
                assert httpx.request(method, f"{served.url}{filled}", headers=headers, timeout=30).status_code == 401, path
                tried += 1
        for path in ("/api/jobs/", "/api/serve/applications/", "/api/version", "/api/v0/nodes"):
            assert httpx.get(f"{served.cluster.dashboard}{path}", headers=headers, timeout=30).status_code in {401, 403}, path
            tried += 1
    assert httpx.post(f"{served.url}/v1/refresh", headers=OF_READER, timeout=30).status_code == 403
    assert httpx.post(f"{served.url}/v1/refresh", headers=OF_ADMIN, timeout=60).status_code == 200
    outside = {name for name, of_name in served.listeners().items() if not all(ipaddress.ip_address(one).is_loopback for one in of_name)}
    assert not [name for name in outside if not name.startswith(("ray::", "raylet", "gcs_server", "python"))], outside
    row.tries, row.lost = tried, f"401 each time; beyond loopback listen {', '.join(sorted(outside))}"


@pytest.mark.fault("S5")
def test_the_head_is_killed(library, row):
    """Ray's own store, then the whole node: with what they knew on disk, the service goes on from the same index version."""
    version = library.index.leads_to()
    out = []
    for number in range(row.tries):
        on_disk = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(library.config.parent / f"gcs-{number}")}
        with head(watched=False, **on_disk) as (cluster, again), service(cluster, library) as served:
            with Clients(served, 4) as clients:
                time.sleep(2)
                store = _restarted(served)
                time.sleep(10)
            assert not clients.failed, clients.failed[:3]
            served.command.kill()
            _kill_all(cluster)
            store.wait()
            begun = time.monotonic()
            again()
            served.wait_for(lambda served=served: _answers(served), "an answer", seconds=120)
            out.append(time.monotonic() - begun)
            assert served.serves(version)
    row.lost, row.recovered = "0 requests while Ray's store was away", f"answers {max(out):.1f} s after the node was lost"
    assert max(out) <= 20 * _BUSY


def _restarted(served):
    """Kill Ray's store, and start it again as it was; return its process."""
    [store] = served.cluster.processes(str(Path(ray.__file__).parent / "core/src/ray/gcs/gcs_server"))
    read = {name: Path(f"/proc/{store}/{name}").read_bytes().decode().rstrip("\0").split("\0") for name in ("cmdline", "environ")}
    environment = dict(entry.split("=", 1) for entry in read["environ"])
    os.kill(store, signal.SIGKILL)
    time.sleep(3)
    return subprocess.Popen(read["cmdline"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _kill_all(cluster):
    for pid in cluster.processes(""):
        if pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    time.sleep(1)
