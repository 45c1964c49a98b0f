"""The page as a person uses it, in Chromium, in front of a real index of real imagery."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import urllib.request

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from rayjobs import geo
from tests.page.conftest import eventually

pytestmark = pytest.mark.slow

LIMIT = 24
SHOWN = "[...document.querySelectorAll('.hit[data-id]')].map(item => item.dataset.id)"


def asked(address, path):
    with urllib.request.urlopen(address + path) as answer:
        return json.load(answer)


def click_map(page, across=0.5, down=0.5, **options):
    box = page.locator("#map").bounding_box()
    page.mouse.click(box["x"] + across * box["width"], box["y"] + down * box["height"], **options)


def hits(page):
    """Ids of the hits that are shown, once they are."""
    page.wait_for_selector("#results[aria-busy=false] .hit[data-id]")
    return page.evaluate(SHOWN)


def searched(page, do):
    """Do something that searches, and return the hits that it brings."""
    with page.expect_response(re.compile(r"/v1/search$")) as waiting:
        do()
    answer = waiting.value.json()
    found = [feature["id"] for feature in answer["features"]]
    eventually(page, f"String({SHOWN}) === String({json.dumps(found)})")
    return answer


def footprint(feature):
    return shapely.geometry.shape(feature["geometry"])


@pytest.fixture
def at_middle(opened):
    """The page after a click on the middle of the map, and what that found."""
    page = opened()
    page.wait_for_selector("#map .scene")
    return page, searched(page, lambda: click_map(page))


def test_a_click_finds_look_alikes(at_middle, service):
    page, answer = at_middle
    assert len(hits(page)) == LIMIT
    scores = [float(text) for text in page.locator(".caption b").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    [example] = re.findall(r"like=([0-9a-f]{20})", page.url)
    shown = asked(service, f"/v1/tiles/{example}")
    bounds = asked(service, "/v1/info")["bounds"]
    assert footprint(shown).contains(shapely.Point((bounds[0] + bounds[2]) / 2, (bounds[1] + bounds[3]) / 2))
    assert shown["properties"]["datetime"].startswith("2018")  # what the map shows is what was clicked
    assert page.locator("#map .leaflet-overlay-pane path[stroke='#ffd75e']").count() == LIMIT
    assert page.locator("#map .leaflet-overlay-pane path[stroke='#ffffff']").count() == 1
    assert page.locator("#results-said").inner_text().startswith(f"{LIMIT} hits of {answer['candidates']}")
    eventually(page, "[...document.querySelectorAll('.hit img')].slice(0, 6).every(image => image.naturalWidth > 0)")


def test_the_address_holds_the_search(at_middle, opened):
    page, _ = at_middle
    found = hits(page)
    assert hits(opened(page.url.rpartition("/")[2])) == found
    searched(page, lambda: click_map(page, 0.3, 0.3))
    searched(page, page.go_back)
    assert hits(page) == found


def test_a_place_without_a_tile_is_told(opened):
    page = opened(quiet=False)
    page.wait_for_selector("#map .scene")
    click_map(page, 0.01, 0.99)
    page.get_by_role("alert").filter(has_text="no tile of the index holds").wait_for()


def test_a_dropped_image_is_its_own_first_hit(opened, service):
    page = opened()
    page.wait_for_selector("#map .scene")
    tile = asked(service, "/v1/tiles?limit=1&offset=100")["features"][0]["id"]
    drop = """async tile => {
        const answer = await fetch(`v1/tiles/${tile}/thumbnail.png`);
        const given = new DataTransfer();
        given.items.add(new File([await answer.blob()], "chip.png", { type: "image/png" }));
        window.dispatchEvent(new DragEvent("dragover", { dataTransfer: given }));
        window.dispatchEvent(new DragEvent("drop", { dataTransfer: given, cancelable: true }));
    }"""
    answer = searched(page, lambda: page.evaluate(drop, tile))
    assert len(answer["features"]) == LIMIT
    assert page.locator(".example img").get_attribute("alt") == "chip.png"
    assert "like=image." in page.url
    before = hits(page)
    page.reload()
    assert hits(page) == before  # the embedding itself is in the address


def test_an_image_of_another_encoder_is_refused(opened):
    page = opened("#like=image.0123456789ab.AAABAAIAAwAEAA", quiet=False)
    page.get_by_text("made by encoder 0123456789ab").wait_for()


def test_what_is_no_image_is_refused_with_the_services_words(opened, tmp_path):
    page = opened(quiet=False)
    page.wait_for_selector("#map .scene")
    wrong = tmp_path / "notes.png"
    wrong.write_text("hello")
    page.set_input_files("#image", wrong)
    page.get_by_role("alert").filter(has_text="notes.png: ").wait_for()


def test_marks_teach_the_next_search(at_middle):
    page, _ = at_middle
    first, second, third = hits(page)[:3]
    page.locator(".hit").nth(0).get_by_role("button", name="right").click()
    page.locator(".hit").nth(1).get_by_role("button", name="wrong").click()
    page.locator(".hit").nth(2).get_by_role("button", name="wrong").click()
    page.locator(".hit").nth(2).get_by_role("button", name="wrong").click()  # taken back
    assert page.locator("#marks-said").inner_text() == "1 right, 1 wrong"
    with page.expect_request(re.compile(r"/v1/search$")) as waiting:
        searched(page, page.get_by_role("button", name="Search again").click)
    body = waiting.value.post_data_json
    assert [example["tile_id"] for example in body["positives"]][1:] == [first]
    assert body["negatives"] == [{"tile_id": second}]
    assert not {first, second} & set(hits(page))
    assert third in hits(page) or len(hits(page)) == LIMIT
    assert page.locator(".example.negatives").count() == 1
    searched(page, page.locator(".example.negatives").get_by_role("button").click)
    assert page.locator(".example").count() == 2


def test_a_drawn_box_is_searched(at_middle):
    page, _ = at_middle
    box = page.locator("#map").bounding_box()
    page.get_by_role("button", name="Draw box").click()

    def draw():
        page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.4 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.7 * box["height"], steps=3)
        page.mouse.up()

    answer = searched(page, draw)
    west, south, east, north = map(float, re.search(r"bbox=([^&]+)", page.url)[1].split("%2C"))
    drawn = shapely.box(west, south, east, north)
    assert answer["candidates"] < 300
    assert all(footprint(feature).envelope.intersects(drawn) for feature in answer["features"])
    page.locator("#filters summary").click()
    searched(page, page.get_by_role("button", name="Everywhere").click)
    assert "bbox" not in page.url


def test_dates_are_searched(at_middle):
    page, _ = at_middle
    page.locator("#filters summary").click()

    def between():
        page.locator("#from").fill("2012-01-01")
        page.locator("#to").fill("2012-12-31")

    answer = searched(page, between)
    assert {feature["properties"]["datetime"][:4] for feature in answer["features"]} == {"2012"}


def test_hits_lie_apart(at_middle):
    page, _ = at_middle
    page.locator("#filters summary").click()
    answer = searched(page, lambda: page.get_by_label("Apart by at least").fill("5"))
    assert page.locator("#spread-said").inner_text() == "1 km"
    middles = np.array([footprint(feature).centroid.coords[0] for feature in answer["features"]])
    distances = [geo.great_circle_m(a, b) for a, b in itertools.combinations(middles, 2)]
    assert len(middles) > 3
    assert min(distances) > 990


def test_similarity_lies_over_the_map(at_middle):
    page, _ = at_middle
    with page.expect_response(re.compile("/page/heat$")) as waiting:
        page.get_by_role("button", name="Heat").click()
    answer = waiting.value.json()
    assert answer["tiles"] == 616
    assert len(answer["cells"]) == answer["rows"] * answer["columns"]
    page.wait_for_selector("#map img.heat")
    assert page.locator("#legend-greatest").inner_text() == f"{answer['greatest']:.3f}"
    with page.expect_response(re.compile("/page/heat$")):
        page.locator("#map").press("+")  # another view, another picture
    page.get_by_role("button", name="Heat").click()
    assert page.locator("#map img.heat").count() == 0


def test_tiles_are_outlined_when_asked_for(at_middle):
    page, _ = at_middle
    with page.expect_response(re.compile("/v1/tiles")):
        page.get_by_role("button", name="Tiles").click()
    page.get_by_role("alert").filter(has_text="too many to outline").wait_for()
    for _ in range(4):
        page.locator("#map").press("+")
    page.wait_for_selector("#map canvas")


def test_hits_are_saved(at_middle):
    page, _ = at_middle
    shown = hits(page)

    def saved(name):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=name, exact=True).click()
        return waiting.value.suggested_filename, waiting.value.path().read_bytes()

    name, content = saved("GeoJSON")
    assert (name, [feature["id"] for feature in json.loads(content)["features"]]) == ("look-alikes.geojson", shown)
    name, content = saved("CSV")
    assert (name, [row["tile_id"] for row in csv.DictReader(io.StringIO(content.decode()))]) == ("look-alikes.csv", shown)
    name, content = saved("GeoParquet")
    assert (name, pq.read_table(io.BytesIO(content))["tile_id"].to_pylist()) == ("look-alikes.parquet", shown)


def test_all_can_be_done_from_the_keyboard(opened):
    page = opened()
    page.wait_for_selector("#map .scene")
    page.keyboard.press("m")
    answer = searched(page, lambda: page.keyboard.press("Enter"))
    shown = [feature["id"] for feature in answer["features"]]
    page.keyboard.press("/")
    held = "document.activeElement.closest('li')?.dataset.id"
    assert page.evaluate(held) == shown[0]
    for key, index in (("ArrowRight", 1), ("ArrowDown", 4), ("ArrowLeft", 3), ("ArrowUp", 0), ("End", LIMIT - 1), ("Home", 0)):
        page.keyboard.press(key)
        assert page.evaluate(held) == shown[index], key
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("-")
    assert page.locator(".hit[data-mark=good]").get_attribute("data-id") == shown[0]
    assert page.locator(".hit[data-mark=bad]").get_attribute("data-id") == shown[1]
    searched(page, lambda: page.keyboard.press("Enter"))
    assert "unlike=" in page.url
    page.keyboard.press("/")
    searched(page, lambda: page.keyboard.press("Enter"))  # without marks: what the hit looks like
    assert "unlike=" not in page.url
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="How to search").is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()


def test_the_tab_key_reaches_every_control(at_middle):
    page, _ = at_middle
    page.locator("#filters summary").click()
    page.evaluate("document.activeElement.blur()")
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("(one => one.id || one.dataset.format || one.getAttribute('class'))(document.activeElement)"))
    wanted = {"help-open", "theme", "map", "draw", "heat", "tiles", "imagery", "image", "from", "to", "area-view", "spread", "limit"}
    assert wanted | {"geojson", "csv", "parquet", "face", "mark right", "mark wrong", "mark like", "remove"} <= seen


@pytest.mark.parametrize("width", [320, 390, 768])
def test_narrow_screens_do_not_scroll_sideways(opened, width):
    page = opened(width=width, height=800, has_touch=True)
    page.wait_for_selector("#map .scene")
    searched(page, lambda: click_map(page, 0.5, 0.6))
    page.locator(".hit").nth(0).get_by_role("button", name="right").click()
    page.locator("#filters summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    small = page.eval_on_selector_all(
        "button:not([hidden]), select, input:not([type=file])",
        "all => all.filter(one => one.checkVisibility()).map(one => [one.id || one.className, one.getBoundingClientRect()])"
        ".filter(([, box]) => box.width < 24 || box.height < 24).map(([name]) => name)",
    )
    assert small == []  # WCAG 2.2, target size


def test_dark_and_light(opened):
    back = "getComputedStyle(document.body).backgroundColor"
    light, dark = opened(), opened(dark=True)
    assert light.evaluate(back) != dark.evaluate(back)
    switch = dark.get_by_role("button", name="Dark colours")
    assert switch.get_attribute("aria-pressed") == "true"
    switch.click()
    assert dark.evaluate(back) == light.evaluate(back)
    dark.reload()
    assert dark.evaluate(back) == light.evaluate(back)  # what was chosen stays


CONTRAST = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], under) => a === 1 ? [r, g, b] : [r, g, b].map((v, i) => a * v + (1 - a) * under[i]);
  const behind = element => {
    const chain = [];
    for (let one = element; one; one = one.parentElement) chain.push(rgb(getComputedStyle(one).backgroundColor));
    return chain.reverse().reduce((under, colour) => over(colour, under), [255, 255, 255]);
  };
  const light = colour => {
    const [r, g, b] = colour.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility({ visibilityProperty: true }) || element.closest("noscript, .rank, svg")) continue;
    const back = behind(element);
    const [a, b] = [light(over(rgb(getComputedStyle(element).color), back)), light(back)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) low.push([element.outerHTML.slice(0, 80), contrast]);
  }
  return low;
}"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read(opened, dark):
    page = opened(dark=dark)
    page.wait_for_selector("#map .scene")
    searched(page, lambda: click_map(page))
    page.locator("#filters summary").click()
    page.locator(".hit").nth(0).get_by_role("button", name="right").click()
    page.locator(".hit").nth(1).get_by_role("button", name="wrong").click()
    page.get_by_role("button", name="Draw box").click()
    assert page.evaluate(CONTRAST) == []
    page.get_by_role("button", name="Help").click()
    assert page.evaluate(CONTRAST) == []


NAMELESS = """() => [...document.querySelectorAll("button, input, select, [role=application], [role=group], dialog, section, aside")]
  .filter(one => !(one.getAttribute("aria-label") || one.getAttribute("aria-labelledby") || one.textContent.trim() || one.labels?.length))
  .map(one => one.outerHTML.slice(0, 80))"""


def test_everything_has_a_name(at_middle):
    page, _ = at_middle
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate("[...document.images].filter(image => !image.hasAttribute('alt')).length") == 0
    ids = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
    assert len(ids) == len(set(ids))
    names = ("aria-labelledby", "aria-controls", "aria-describedby", "for")
    references = page.evaluate("names => [...document.querySelectorAll('*')].flatMap(one => names.map(n => one.getAttribute(n)))", names)
    assert set(filter(None, references)) <= set(ids)
    assert page.locator("h1").count() == 1
    assert page.evaluate("document.documentElement.lang") == "en"


def test_a_fault_is_told_and_the_search_can_be_tried_again(at_middle, opened):
    page = opened(quiet=False)
    page.wait_for_selector("#map .scene")
    refusal = json.dumps({"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "the encoder is busy"})
    page.route("**/v1/search", lambda route: route.fulfill(status=503, content_type="application/problem+json", body=refusal))
    click_map(page)
    page.get_by_role("alert").filter(has_text="the encoder is busy").wait_for()
    page.unroute("**/v1/search")
    searched(page, page.get_by_role("button", name="Try again").click)
    assert len(hits(page)) == LIMIT


def test_a_service_that_is_gone_is_told(opened):
    page = opened(quiet=False)
    page.wait_for_selector("#map .scene")
    page.route("**/v1/search", lambda route: route.abort())
    click_map(page)
    page.get_by_role("alert").filter(has_text="does not answer").wait_for()


def test_without_hits_the_filters_can_be_taken_back(at_middle, opened):
    page, _ = at_middle
    other = opened(page.url.rpartition("/")[2] + "&from=2011-01-01&to=2011-02-01")
    other.get_by_text("No tile passes these filters.").wait_for()
    searched(other, other.get_by_role("button", name="Search everywhere").click)
    assert len(hits(other)) == LIMIT


def test_before_a_search_the_page_says_what_to_do(opened):
    page = opened("#like=nonsense&bbox=1,2&hits=-3&apart=x")
    page.get_by_text("Click a place on the map, or give an image").wait_for()
    searched(page, page.get_by_role("button", name="Show me any place").click)
    assert len(hits(page)) == LIMIT


def test_changes_between_two_dates(opened):
    page = opened()
    page.wait_for_selector("#map .scene")
    page.get_by_role("tab", name="Changes").click()
    with page.expect_response(re.compile("/v1/changes$")) as waiting:
        page.get_by_role("button", name="Find changes").click()
    features = waiting.value.json()["features"]
    assert {feature["properties"]["from_datetime"][:4] for feature in features} == {"2010"}
    assert {feature["properties"]["to_datetime"][:4] for feature in features} == {"2018"}
    changes = [float(text) for text in page.locator(".pair b").all_inner_texts()]
    assert changes == sorted(changes, reverse=True)
    page.locator(".pair").first.click()
    page.get_by_role("tab", name="Look-alikes").click()
    assert page.locator("#search").is_visible()


def test_a_token_is_asked_for_and_kept_in_the_tab(naip, opened):
    from tests.page import small_index

    with small_index.served(naip, token="secret of the house") as address:
        page = opened(address=address, quiet=False)
        for attempt in ("wrong", "secret of the house"):
            for _ in range(3):  # it comes again where somebody leaves it
                page.get_by_role("dialog", name="This service asks for a token").wait_for()
                page.keyboard.press("Escape")
                page.wait_for_timeout(100)
            page.get_by_role("dialog", name="This service asks for a token").wait_for()
            page.locator("#token-value").fill(attempt)
            page.get_by_role("button", name="Enter").click()
        page.wait_for_selector("#map .scene")
        searched(page, lambda: click_map(page))
        page.wait_for_selector(".hit img[src^='blob:']")
        assert page.evaluate("localStorage.length + document.cookie.length") == 0
        assert not any("secret" in url for url in page.asked)
        page.reload()
        assert len(hits(page)) == LIMIT  # without being asked again


def test_images_without_a_place_are_chosen_from_a_gallery(data, tmp_path_factory, opened):
    from tests.page import small_index

    folder = tmp_path_factory.mktemp("pictures")
    for name in ("Airport", "Park"):
        (folder / name).mkdir()
        for path in sorted((data("aid_15classes") / name).iterdir())[:15]:
            (folder / name / path.name).symlink_to(path)
    rasters = {"sources": [{"kind": "images", "root": str(folder), "labels": "folder"}]}
    tiles = {"size": None, "splits": {"train": 1, "val": 0, "test": 0}}
    made = small_index.sampled(small_index.experiment_of("aid", f"file:{tmp_path_factory.mktemp('aid')}", rasters, tiles))
    with small_index.served(small_index.indexed(made, small_index.random_encoder(made, side=64))) as address:
        page = opened(address=address, quiet=False)
        page.wait_for_selector("#gallery-items button")
        assert page.locator("#gallery-items button").count() == 30
        assert not page.locator("#map").is_visible()
        answer = searched(page, page.locator("#gallery-items button").nth(3).click)
        assert len(answer["features"]) == LIMIT
        assert page.locator(".caption span").first.inner_text() in {"Airport", "Park"}
        assert page.complaints == []


def test_no_path_reaches_the_disk(service):
    for path in ("/page/..%2f..%2fapi.py", "/page/page.py", "/page/static/main.js", "/page/overview/99.png"):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(service + path)
        assert refusal.value.code == 404
        refusal.value.close()


def test_files_say_what_they_may_do(service):
    with urllib.request.urlopen(service) as answer:
        policy, tag, text = answer.headers["content-security-policy"], answer.headers["etag"], answer.read().decode()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|\sstyle=|\son\w+=", text)
    request = urllib.request.Request(service, headers={"if-none-match": tag})
    with pytest.raises(urllib.error.HTTPError) as unchanged:
        urllib.request.urlopen(request)
    assert unchanged.value.code == 304
    unchanged.value.close()
