"""The extension for Worldview in Chromium: its panel beside a page with Worldview's address, in front of a real service."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.parse
import urllib.request

import pytest

from tests.page.conftest import WAIT_MS, eventually
from tests.page.loaded_extension import EXTENSION, Worldview, loaded, worldview_page

pytestmark = pytest.mark.slow

LAYERS = "Coastlines,MODIS_Aqua_CorrectedReflectance_TrueColor(hidden),VIIRS_SNPP_CorrectedReflectance_TrueColor(opacity=0.9,palettes=a,b)"
PAUSE_MS = 250
CONTEXT = "?p=geographic&v={v}&l={layers}&z=3&t=2018-07-16-T00%3A00%3A00Z"


def asked(address, path):
    with urllib.request.urlopen(address + path) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def worldview():
    with worldview_page() as address:
        yield address


@pytest.fixture(scope="module")
def extension(browser, service, worldview, tmp_path_factory):
    with loaded(browser, tmp_path_factory.mktemp("extension"), [service, worldview]) as started:
        yield started


@pytest.fixture
def opened(extension, service, worldview):
    """Open Worldview with a view of the index's middle, and the panel beside it: `opened(v="...", token="...")`."""
    context, worker = extension
    west, south, east, north = asked(service, "/v1/info")["bounds"]
    lon, lat = (west + east) / 2, (south + north) / 2
    pages = []

    def opened(path=None, *, v=f"{lon - 1},{lat - 0.5},{lon + 1},{lat + 0.5}", address=service, token="", snapshot=""):
        values = {"service": address, "token": token, "worldview": worldview, "snapshot": snapshot}
        worker.evaluate("values => chrome.storage.local.set(values)", values)
        page = context.new_page()
        page.goto(f"{worldview}/{path if path is not None else CONTEXT.format(v=v, layers=urllib.parse.quote(LAYERS, safe='(),='))}")
        tab = worker.evaluate("async () => (await chrome.tabs.query({ active: true }))[0].id")
        panel = context.new_page()
        panel.complaints = []
        panel.on("pageerror", lambda error: panel.complaints.append(str(error)))
        panel.set_viewport_size({"width": 400, "height": 900})
        panel.goto(f"{worker.url.rpartition('/')[0]}/panel.html?tab={tab}")
        eventually(panel, "document.querySelector('#view').textContent")
        pages.extend([panel, page])
        panel.worldview = page
        return panel

    yield opened
    assert [complaint for page in pages for complaint in getattr(page, "complaints", [])] == []
    for page in pages:
        page.close()


def searched(panel, name="Search"):
    """Click a button that searches, and return what the service answered."""
    with panel.expect_response("**/v1/search") as waiting:
        panel.get_by_role("button", name=name, exact=True).click()
    panel.wait_for_selector("#results[aria-busy=false]")
    return waiting.value.request.post_data_json, waiting.value.json()["features"]


def shown(panel):
    return panel.eval_on_selector_all("#hits li", "all => all.map(one => one.dataset.id)")


def test_the_open_view_is_searched_and_hits_open_in_worldview(opened, service):
    panel = opened()
    assert "2018-07-16" in panel.locator("#view").inner_text()
    assert panel.locator("#view").inner_text().endswith("· VIIRS_SNPP_CorrectedReflectance_TrueColor")  # neither hidden nor an outline
    request, found = searched(panel)
    [example] = request["positives"]
    tile = asked(service, f"/v1/tiles/{example['tile_id']}")
    bounds = asked(service, "/v1/info")["bounds"]
    ring = tile["geometry"]["coordinates"][0]
    assert min(lon for lon, _ in ring) <= (bounds[0] + bounds[2]) / 2 <= max(lon for lon, _ in ring)
    assert min(lat for _, lat in ring) <= (bounds[1] + bounds[3]) / 2 <= max(lat for _, lat in ring)
    assert tile["properties"]["datetime"].startswith("2018-07-16")  # the open date
    assert shown(panel) == [feature["id"] for feature in found]
    eventually(panel, "[...document.querySelectorAll('#hits img')].slice(0, 3).every(one => one.naturalWidth > 0)")
    link = urllib.parse.urlsplit(panel.get_by_role("link").first.get_attribute("href"))
    words = dict(urllib.parse.parse_qsl(link.query))
    west, south, east, north = map(float, words["v"].split(","))
    corners = [corner for ring in found[0]["geometry"]["coordinates"] for corner in ring]
    assert [west, south] == pytest.approx([min(lon for lon, _ in corners), min(lat for _, lat in corners)], abs=1e-5)
    assert [east, north] == pytest.approx([max(lon for lon, _ in corners), max(lat for _, lat in corners)], abs=1e-5)
    assert words["l"] == LAYERS
    assert words["t"][:10] == found[0]["properties"]["datetime"][:10]


def test_the_nearest_date_is_found_among_any_number(opened, service):
    panel = opened()
    panel.worldview.evaluate("history.replaceState(null, '', location.search.replace('2018-07-16', '2018-08-01'))")
    panel.get_by_text("2018-08-01").wait_for()
    windows = []
    panel.on("request", lambda request: "/v1/tiles?" in request.url and windows.append(request.url.rpartition("datetime=")[2]))
    request, _ = searched(panel)
    tile = asked(service, f"/v1/tiles/{request['positives'][0]['tile_id']}")
    assert tile["properties"]["datetime"].startswith("2018-07-16")
    assert windows == ["2018-08-01/2018-08-01", "2018-07-29/2018-08-04", "2018-07-02/2018-08-31"]


def test_pictures_that_are_shown_no_more_are_let_go_of(opened):
    panel = opened()
    panel.evaluate("""() => {
        const { createObjectURL, revokeObjectURL } = URL;
        window.held = new Set();
        URL.createObjectURL = (blob) => { const made = createObjectURL(blob); window.held.add(made); return made; };
        URL.revokeObjectURL = (address) => { window.held.delete(address); revokeObjectURL(address); };
    }""")
    searched(panel)
    searched(panel)
    eventually(panel, "[...document.querySelectorAll('#hits img')].every(one => one.src)")
    shown_now = "[...document.querySelectorAll('#hits img, #examples img')].map(one => one.src)"
    held_is_shown = f"window.held.size === new Set({shown_now}).size"
    eventually(panel, held_is_shown)
    panel.route("**/v1/search", lambda route: route.abort())
    fault(panel)
    eventually(panel, held_is_shown)
    panel.get_by_role("button", name="Add").click()  # the example that is there
    panel.get_by_text("among the examples already").wait_for()
    eventually(panel, held_is_shown)
    panel.get_by_role("button", name="Clear").click()
    eventually(panel, "window.held.size === 0")


def test_hits_become_examples_and_teach_the_next_search(opened):
    panel = opened()
    _, found = searched(panel)
    first, second = (feature["id"] for feature in found[:2])
    panel.get_by_role("button", name="Hit 1 is right").click()
    panel.wait_for_selector("#examples li:nth-child(2)")
    panel.locator(f"[data-id='{second}']").get_by_role("button", name="is wrong").click()
    panel.wait_for_selector("#examples .negatives")
    assert not {first, second} & set(shown(panel))
    request, found = searched(panel, "Search again")
    assert [example["tile_id"] for example in request["positives"]][1:] == [first]
    assert request["negatives"] == [{"tile_id": second}]
    assert not {first, second} & {feature["id"] for feature in found}
    panel.locator("#examples .negatives").get_by_role("button").click()
    request, _ = searched(panel, "Search again")
    assert "negatives" not in request


def test_a_search_that_fails_leaves_the_examples_that_the_hits_are_of(opened):
    panel = opened()
    first, _ = searched(panel)
    panel.get_by_role("button", name="Hit 1 is right").click()
    panel.wait_for_selector("#examples li:nth-child(2)")
    before = [shown(panel), panel.locator("#examples").inner_html()]
    panel.route("**/v1/search", lambda route: route.fulfill(status=503, json={"detail": "no room"}))
    assert "no room" in fault(panel)
    assert [shown(panel), panel.locator("#examples").inner_html()] == before
    panel.unroute("**/v1/search")
    request, _ = searched(panel, "Search again")
    assert request["positives"][0] == first["positives"][0]
    assert len(request["positives"]) == 2


def test_nothing_is_taken_from_under_a_search(opened):
    panel = opened()
    searched(panel)
    waiting = []
    panel.route("**/v1/search", lambda route: waiting.append(route))  # noqa: PLW0108  playwright marks what it is given
    panel.get_by_role("button", name="Search", exact=True).click()
    for _ in range(WAIT_MS // PAUSE_MS):
        if waiting:
            break
        panel.wait_for_timeout(PAUSE_MS)
    panel.get_by_role("button", name="Clear").click()
    panel.locator("#examples").get_by_role("button").click()
    waiting[0].continue_()
    panel.wait_for_selector("#results[aria-busy=false]")
    assert shown(panel)
    assert panel.locator("#examples li").count() == 1
    panel.get_by_role("button", name="Clear").click()
    eventually(panel, "document.querySelector('#query').hidden")
    assert shown(panel) == []
    assert panel.locator("#said").inner_text() == ""


def test_a_tab_that_was_closed_has_no_view(opened):
    panel = opened()
    panel.worldview.close()
    panel.get_by_role("button", name="Search", exact=True).and_(panel.locator(":disabled")).wait_for()
    assert "2018-07-16" not in panel.locator("#view").inner_text()


def test_the_panel_follows_the_map(opened):
    panel = opened("")
    assert "says no place yet" in panel.locator("#view").inner_text()
    assert panel.get_by_role("button", name="Search", exact=True).is_disabled()
    panel.worldview.evaluate("history.replaceState(null, '', '?v=10,20,30,40&t=2020-08-15')")
    panel.get_by_text("30.00° N 20.00° E · 2020-08-15").wait_for()
    panel.worldview.evaluate("history.replaceState(null, '', '?p=arctic&v=-10,20,30,40')")
    panel.get_by_text("arctic projection").wait_for()
    panel.worldview.evaluate("history.replaceState(null, '', '?ca=false&v=170,0,190,20&t=2001-01-01&t1=2002-02-02&l=a&l1=b')")
    panel.get_by_text("10.00° N 180.00° W · 2002-02-02 · b").wait_for()


def test_hits_can_be_of_the_open_date_alone(opened):
    panel = opened()
    panel.get_by_label("Hits of").select_option("the open date")
    _, found = searched(panel)
    assert {feature["properties"]["datetime"][:10] for feature in found} == {"2018-07-16"}


def test_a_picture_of_the_view_is_searched_for(opened, service, worldview):
    tile = asked(service, "/v1/tiles?limit=1&offset=100")["features"][0]["id"]
    with urllib.request.urlopen(f"{service}/v1/tiles/{tile}/thumbnail.png") as answer:
        Worldview.picture = answer.read()
    panel = opened(v="10,20,30,30", snapshot=worldview + "/snapshot?t={day}&b={south},{west},{north},{east}&l={layers}&s={width}x{height}")
    request, found = searched(panel, "Search by its picture")
    assert Worldview.drawn == "/snapshot?t=2018-07-16&b=20,10,30,30&l=VIIRS_SNPP_CorrectedReflectance_TrueColor&s=512x256"
    assert request["positives"][0].keys() == {"embedding", "encoder_fingerprint"}
    assert found


def fault(panel):
    panel.get_by_role("button", name="Search", exact=True).click()
    panel.wait_for_selector("#fault:not([hidden])")
    return panel.locator("#fault").inner_text()


def test_what_is_wrong_is_said(opened):
    assert "has no tile at 5.00° S 100.00° E: it covers" in fault(opened(v="90,-10,110,0"))
    assert "Give its address in the options" in fault(opened(address=""))
    assert "may not ask http://127.0.0.1:9 yet" in fault(opened(address="http://127.0.0.1:9"))


def test_a_hole_is_told_from_ground_that_is_not_covered(opened, service):
    panel = opened()
    west, _, east, _ = asked(service, "/v1/info")["bounds"]

    def nothing(route):
        box = urllib.parse.parse_qs(urllib.parse.urlsplit(route.request.url).query)["bbox"][0].split(",")
        return route.fulfill(json={"features": []}) if box[:2] == box[2:] else route.continue_()

    panel.route(re.compile(r"/v1/tiles\?"), nothing)
    said = fault(panel)
    assert "has no tile at 47.02° N 99.16° W: it has tiles around it, but none just there; one near by is at 47.0" in said
    assert "it covers" not in said
    link = urllib.parse.urlsplit(panel.get_by_role("link", name="Open that one in Worldview").get_attribute("href"))
    near = [float(degrees) for degrees in dict(urllib.parse.parse_qsl(link.query))["v"].split(",")]
    assert near[2] - near[0] < (east - west) / 4
    assert near[0] - (near[2] - near[0]) < (west + east) / 2 < near[2] + (near[2] - near[0])


def test_addresses_that_cannot_be_read_are_told_in_words(opened):
    panel = opened("?v=10,20,30,40&t=9999-99-99")
    view = panel.locator("#view")
    assert view.inner_text() == "The address of the open page names no real date (t=9999-99-99). Choose a date in Worldview."
    panel.worldview.evaluate("history.replaceState(null, '', '?v=10,20,30,40&t=2018-02-30')")
    panel.get_by_text("no real date (t=2018-02-30)").wait_for()
    panel.worldview.evaluate("history.replaceState(null, '', '?v=10,20,30')")
    panel.get_by_text("says no place that can be read (v=10,20,30)").wait_for()
    assert panel.get_by_role("button", name="Search", exact=True).is_disabled()
    panel.worldview.evaluate("history.replaceState(null, '', '?v=170,0,-170,10')")
    panel.get_by_text("5.00° N 180.00° W").wait_for()
    assert panel.get_by_role("button", name="Search", exact=True).is_enabled()


def test_options_take_addresses_of_the_web_alone(extension):
    context, worker = extension
    options = context.new_page()
    options.goto(f"{worker.url.rpartition('/')[0]}/options.html")
    options.get_by_label("Address of your service").fill("javascript:alert(1)")
    options.get_by_role("button", name="Save and try").click()
    said = options.get_by_role("status").filter(has_text="The address of your service must begin with http:// or https://")
    said.wait_for()
    options.get_by_label("Address of your service").fill("http://127.0.0.1:9")
    options.get_by_text("Worldview and pictures of views").click()
    options.get_by_label("Address of pictures").fill("nasa")
    options.get_by_role("button", name="Save and try").click()
    options.get_by_role("status").filter(has_text="The address of pictures must begin").wait_for()
    options.close()


def test_the_side_panel_reads_the_tab_beside_it(opened):
    panel = opened(v="10,20,30,40")
    panel.evaluate("""document.querySelector("h1").addEventListener("click", async () =>
        chrome.sidePanel.open({ windowId: (await chrome.windows.getCurrent()).id }))""")
    panel.locator("h1").click()  # a browser opens it at a person's click alone
    panel.worldview.bring_to_front()
    browser = panel.context.new_cdp_session(panel)
    answers = []
    browser.on("Target.receivedMessageFromTarget", lambda message: answers.append(json.loads(message["message"])))
    ask = json.dumps({"id": 1, "method": "Runtime.evaluate", "params": {"expression": "document.querySelector('#view').textContent"}})
    for _ in range(WAIT_MS // PAUSE_MS):
        beside = [one for one in browser.send("Target.getTargets")["targetInfos"] if one["url"].endswith("/panel.html")]
        for target in beside:
            session = browser.send("Target.attachToTarget", {"targetId": target["targetId"], "flatten": False})["sessionId"]
            browser.send("Target.sendMessageToTarget", {"sessionId": session, "message": ask})
        panel.wait_for_timeout(PAUSE_MS)
        if any("30.00° N 20.00° E" in answer["result"]["result"].get("value", "") for answer in answers):
            return
    pytest.fail(f"the side panel never showed the view; it said {answers[-3:]}")


def test_the_options_try_what_they_save(browser, naip, worldview, tmp_path):
    from tests.page import small_index

    with contextlib.ExitStack() as stack:
        with small_index.served(naip, token="secret") as address:
            context, worker = stack.enter_context(loaded(browser, tmp_path, [address, worldview]))
            options = context.new_page()
            options.goto(f"{worker.url.rpartition('/')[0]}/options.html")
            options.get_by_label("Address of your service").fill(address + "/")
            tried(options, "wrong", "refused the token")
            tried(options, "secret", "The service answers: index “naip”")
            kept = worker.evaluate("async () => chrome.storage.local.get()")
            assert kept["token"] == "secret"
            assert kept["service"] == address
            assert worker.evaluate("async () => chrome.storage.sync.get()") == {}
        tried(options, "secret", f"{address} does not answer")
        assert worker.evaluate("async () => chrome.sidePanel.getPanelBehavior()") == {"openPanelOnActionClick": True}


def tried(options, token, said):
    options.get_by_label("Token").fill(token)
    options.get_by_role("button", name="Save and try").click()
    options.get_by_role("status").filter(has_text=said).wait_for()


def test_the_manifest_asks_for_little():
    manifest = json.loads((EXTENSION / "manifest.json").read_text())
    assert manifest["manifest_version"] == 3
    assert manifest["host_permissions"] == ["https://worldview.earthdata.nasa.gov/*"]
    assert set(manifest["permissions"]) == {"sidePanel", "storage"}
    assert not any("://" in line and "import" in line for path in EXTENSION.glob("*.js") for line in path.read_text().splitlines())
