from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import PIL.Image
import pytest

from rayjobs.evaluate.page import page
from rayjobs.evaluate.page.markup import element, joined

HOSTILE = '<script>alert("x")</script>\'"&<img src=http://evil.example/x onerror=a()>'
ROWS = ("random-init", "frozen-pretrained", "trained")
VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Reads a page strictly: every element must be closed in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return "\n".join(self.texts)


def entry(value, width=0.05):
    return {"value": value, "low": value - width, "high": value + width}


def probes():
    found = []
    for place, row in enumerate(ROWS):
        for split, flattery in (("ground", 0.0), ("random", 0.25)):
            metrics = {"accuracy": entry(0.301 + 0.1 * place + flattery), "weighted_f1": entry(0.207 + 0.1 * place)}
            minus = None if row == "trained" else {name: entry(0.111) for name in metrics}
            common = {"row": row, "split": split, "splits": 10, "test_ratio": 0.33, "trained_minus": minus}
            found.append({**common, "probe": "knn", "target": "classes", "metrics": metrics})
    return found


def by_class(name):
    probe = {"tested": 17, "precision": 0.513, "recall": 0.414, "f1": 0.455}
    return [
        {"class": name, "tiles": 41, "queries": 39, "metrics": {"MAP@R": entry(0.617)}, "probe": probe},
        {"class": "rare", "tiles": 1, "queries": 0, "metrics": {"MAP@R": None}, "probe": None},
    ]


def pixels(name):
    metrics = {"mIoU": entry(0.347), "pixel_accuracy": entry(0.719)}
    minus = None if name == "trained" else {metric: entry(0.077) for metric in metrics}
    return {"name": name, "metrics": metrics, "trained_minus": minus, "iou": {HOSTILE: 0.613, "rare": None}, "penalty": 0.333}


def by_date():
    return [
        {
            "asking": asking,
            "asked": HOSTILE,
            "gap_days": gap,
            "queries": 41,
            "gallery": 154,
            "median_rank": 2.5,
            "metrics": {"MRR@5": entry(0.617), "recall@1": {"value": 0.5, "low": None, "high": None}},
        }
        for asking, gap in (("2010-06-29", 763), ("2012-07-31", -763))
    ]


@pytest.fixture
def report():
    rows = [
        {
            "name": name,
            "metrics": {"recall@1": entry(0.123 + 0.2 * place), "MAP@R": entry(0.256 + 0.2 * place)},
            "without_interval": {"silhouette": -0.037 * place if place else None},
        }
        for place, name in enumerate(ROWS)
    ]
    return {
        "rows": rows,
        "objective": "MAP@R",
        "differences": {"random-init": entry(0.4), "frozen-pretrained": entry(0.02)},
        "probes": probes(),
        "classes": {name: by_class(HOSTILE) for name in ROWS},
        "segmentation": {"rows": [pixels(name) for name in ROWS], "protocol": {"tested_pixels": {HOSTILE: 4321, "rare": 7}}},
        "dates": {name: by_date() for name in ROWS},
        "without": {
            "classes": [HOSTILE],
            "queries": 347,
            "gallery": 351,
            "rows": {name: {"MAP@R": entry(0.531), "recall@1": entry(0.643)} for name in ROWS},
            "differences": {"random-init": entry(0.173), "frozen-pretrained": entry(0.019)},
        },
        "distances": {
            "random_pairs": 5324.125,
            "rows": {name: {"distance_km@64": entry(3537.5), "distance_km@1": entry(2211.25)} for name in ROWS},
        },
        "confusion": {"probe": "knn", "split": "ground", "classes": [HOSTILE, "rare"], "rows": {name: [[271, 3], [1, 0]] for name in ROWS}},
        "protocol": {
            "split": "test",
            "queries": 590,
            "gallery": 612,
            "relevant": "tiles of the query's class",
            "excluded": "the query itself",
            "units": 8,
            "probe_splits": {"ground": "whole blocks", "random": "tile by tile"},
            "seeds": {"train": 20240101},
            "cautions": ["only 8 independent units", HOSTILE],
        },
    }


def png(width=8, height=4):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def written(report, pictures=None, **chosen):
    given = {"name": "aid", "experiment": "name: aid\n", "versions": {"torch": "2.15.0"}} | chosen
    return page(report, pictures or {}, **given)


def test_the_page_is_well_formed_and_stands_alone(report):
    text = written(report, {"pca/trained": png(), "neighbours/trained": png(), "curves": png()})
    found = Reader(text)
    assert text.startswith("<!doctype html>")
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in found.elements}
    for _, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    policy = next(attributes["content"] for tag, attributes in found.elements if tag == "meta" and "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")


def test_every_link_leads_to_a_part_that_is_there(report):
    elements = Reader(written(report)).elements
    anchors = {attributes["id"] for tag, attributes in elements if tag == "section"}
    links = [attributes["href"].removeprefix("#") for tag, attributes in elements if tag == "a"]
    assert set(links) == anchors
    assert len(links) == len(anchors)


def test_every_figure_of_the_report_stands_in_the_page(report):
    text = Reader(written(report)).text.replace("\N{MINUS SIGN}", "-")

    def numbers(value):
        if isinstance(value, dict):
            return [number for inner in value.values() for number in numbers(inner)]
        if isinstance(value, list):
            return [number for inner in value for number in numbers(inner)]
        return [value] if isinstance(value, int | float) else []

    found = numbers(report)
    assert len(found) > 100
    missing = [number for number in found if (f"{number:.3f}" if isinstance(number, float) else str(number)) not in text and number != 0.33]
    assert not missing
    for word in ("recall@1", "MAP@R", "silhouette", "accuracy", "weighted_f1", "precision", "0.33 tested for each trained tile"):
        assert word in text


def test_hostile_names_are_text(report):
    report["rows"][0]["name"] = HOSTILE
    report["differences"] = {HOSTILE: entry(0.4)}
    report["probes"][0]["row"] = HOSTILE
    pictures = {f"pca/{HOSTILE}": png()}
    text = written(report, pictures, name=HOSTILE, experiment=HOSTILE, versions={HOSTILE: HOSTILE}, notes=[HOSTILE])
    found = Reader(text)
    assert "<script" not in text
    assert len([tag for tag, _ in found.elements if tag == "img"]) == 1
    assert found.text.count(HOSTILE) > 8


def test_the_differences_are_put_in_words(report):
    text = Reader(written(report)).text
    assert "higher than random-init" in text
    assert "not told apart from frozen-pretrained" in text
    report["differences"]["random-init"] = entry(-0.3)
    assert "lower than random-init" in Reader(written(report)).text
    report["differences"]["random-init"] = {"value": 0.3, "low": None, "high": None}
    assert "not known: a single unit" in Reader(written(report)).text


def test_probes_on_ground_and_at_random_stand_side_by_side(report):
    text = written(report)
    cells = re.search(r"<th scope=\"row\">random-init</th>(<td>knn</td>.*?)</tr>", text)[1]
    plain = re.sub(r"<[^>]*>", " ", cells).split()
    assert plain[0] == "knn"
    assert plain.index("0.301") < plain.index("0.551") < plain.index("+0.250") < plain.index("+0.111")


def test_a_probe_that_ran_on_one_kind_of_split_alone_is_shown(report):
    report["probes"] = [entry for entry in report["probes"] if entry["split"] == "random"]
    assert "0.551" in Reader(written(report)).text


def test_pictures_are_whole_sized_and_told(report):
    given = {"umap/trained": png(20, 10), "pca/trained": png(30, 15), "pca/random-init": png(), "own-kind": png()}
    images = [attributes for tag, attributes in Reader(written(report, given)).elements if tag == "img"]
    assert len(images) == 4
    assert {base64.b64decode(image["src"].partition(",")[2]) for image in images} == set(given.values())
    assert (images[0]["width"], images[0]["height"]) == ("30", "15")
    assert images[0]["alt"].startswith("trained. ")
    assert images[1]["alt"].startswith("trained. UMAP")
    with pytest.raises(ValueError, match="not a PNG"):
        written(report, {"pca": b"<svg>"})


def test_cautions_and_notes_stand_out(report):
    found = Reader(written(report, notes=["UMAP is not installed"]))
    assert "only 8 independent units" in found.text
    assert "UMAP is not installed" in found.text
    assert [attributes for tag, attributes in found.elements if attributes.get("role") == "note"]
    report["protocol"]["cautions"] = []
    assert not [attributes for tag, attributes in Reader(written(report)).elements if attributes.get("role") == "note"]


def test_a_report_without_classes_has_no_empty_parts(report):
    report |= {"probes": [], "classes": {}, "confusion": None, "segmentation": None, "dates": {}}
    found = Reader(written(report, versions={}))
    assert "Probes" not in found.text
    assert "Class by class" not in found.text
    assert "Confusion" not in found.text
    assert "Single pixels" not in found.text
    assert "Date by date" not in found.text
    assert "Versions" not in found.text


def test_the_experiment_is_folded_away(report):
    text = written(report, experiment="loss:\n  kind: triplet\n")
    assert "<details><summary>The resolved experiment file</summary><pre><code>loss:\n  kind: triplet\n</code></pre></details>" in text


def test_markup_escapes_what_is_not_markup():
    assert element("p", "<b>", element("i", "&"), class_='a"b') == '<p class="a&quot;b">&lt;b&gt;<i>&amp;</i></p>'
    assert element("img", alt=None, src="x") == '<img src="x">'
    assert joined("<", 1) == "&lt;1"
