"""What people read of requests that failed: every reason before a second request of one, and no promise that asking again helps."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from rayjobs.console import Console
from rayjobs.fetch import job
from rayjobs.fetch.missing import told_missing
from rayjobs.rasters.web import NOT_ASKED
from tests.unit.fetch.conftest import BBOX, DATES

BAD, BUSY = "HTTP 400 Bad Request: Invalid date", "HTTP 503 Service Unavailable"
SCENES = [SimpleNamespace(scene_id="a", listed=True), SimpleNamespace(scene_id="b", listed=False)]


def failed(count, status, reason, scene="a"):
    return [
        {"scene_id": scene, "url": f"https://x/{status}/{number}", "status": status, "at": "2024-01-01T00:00:00", "reason": reason}
        for number in range(count)
    ]


def lines(*groups, scenes=SCENES):
    return list(told_missing([row for group in groups for row in group], scenes, "w/missing/x.parquet"))


def test_each_line_is_another_reason():
    waits = [*failed(1, 503, f"{BUSY}; asks to wait 3 s"), *failed(1, 503, f"{BUSY}; asks to wait 4 s")]
    told = lines(
        failed(4, 400, BAD), failed(1, None, "ReadTimeout: slow"), waits, failed(16, 404, "HTTP 404 Not Found"), failed(1, 200, "?")
    )
    assert told[0] == "24 requests failed; w/missing/x.parquet names each (`outcome` is `failed`), and so does --json"
    assert told[1:4] == [
        "16 requests: HTTP 404 Not Found; such as https://x/404/0 at 2024-01-01T00:00:00",
        f"4 requests: {BAD}; such as https://x/400/0 at 2024-01-01T00:00:00",
        f"2 requests: {BUSY}; asks to wait 3 s; such as https://x/503/0 at 2024-01-01T00:00:00",
    ]
    assert told[4] == "2 requests for 2 more reasons"


def test_asking_again_is_the_remedy_of_what_may_pass():
    again = "the same command asks for them again, and for nothing that is there"
    assert lines(failed(2, 503, BUSY), failed(9, None, NOT_ASKED))[-1] == again
    assert lines(failed(9, None, NOT_ASKED))[-1] == again
    assert not any("refused" in line for line in lines(failed(2, 503, BUSY)))


def test_a_refusal_is_not_to_be_asked_again():
    told = lines(failed(20, 400, BAD), failed(9, None, NOT_ASKED))
    assert told[-1].startswith("the service refused 20 requests: the same command asks again, and will hardly be answered otherwise")
    assert not any("does not list" in line or "empty_statuses" in line for line in told)
    assert lines(failed(20, 400, BAD), failed(9, 503, BUSY))[-1].startswith("the same command asks for those not refused again")
    assert "empty_statuses" in lines(failed(1, 404, "HTTP 404 Not Found"))[-1]
    assert any("does not list the dates of 1 scenes (b)" in line for line in lines(failed(1, 400, BAD, scene="b")))


def test_a_date_that_the_service_does_not_list_is_cautioned_of(service, fetch, experiment, in_this_process):
    told = job.preview(experiment(dates=[DATES[0], "2031-07-01"]))
    (odd,) = told["scenes_not_listed"]
    assert "2031-07-01" in odd
    assert job.preview(experiment())["scenes_not_listed"] == []
    err = io.StringIO()
    service.fail(lambda path: "expired" if "2031" in path else None)
    result = job.run(experiment(dates=[DATES[0], "2031-07-01"]), Console(io.StringIO(), err))
    before, after = err.getvalue().split("12 requests failed; ")
    assert f"the service does not list the dates of 1 scenes ({odd})" in before
    assert f"{result.requests} names each" in "12 requests failed; " + after
    assert "12 requests: HTTP 400 ExpiredToken: ExpiredToken as the test wants it; such as http" in after
    assert f"does not list the dates of 1 scenes ({odd})" in after
    assert "the service refused 12 requests" in after


@pytest.mark.parametrize("date", [DATES[0], "2031-07-01"])
def test_the_dry_run_cautions_on_the_terminal(service, in_this_process, tmp_path, capfd, date):
    url = f"{service.proxy.endpoint}/wmts/1.0.0/WMTSCapabilities.xml"
    what = ["--layer", "MODIS_Terra_TrueColor", "--bbox", *map(str, BBOX), "--dates", date, "--url", url]
    assert job.main([*what, "--workspace.uri", str(tmp_path / "w"), "--dry-run"]) == 0
    assert ("does not list the dates of 1 scenes" in capfd.readouterr().err) == (date != DATES[0])
