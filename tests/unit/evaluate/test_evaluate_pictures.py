from __future__ import annotations

import io
import sys
import threading

import matplotlib as mpl
import numpy as np
import PIL.Image
import pytest
from matplotlib.colors import to_rgb

from rayjobs.errors import RetrievalError
from rayjobs.evaluate import pictures
from rayjobs.evaluate.pictures.look import BLUE, COLOURS, DISTINCT, VERMILLION, mark, plain
from rayjobs.evaluate.pictures.scatter import _groups, _thinned

HOSTILE = ["$\\frac{1$", "a\nb\tc", "田んぼ", "", "x" * 300, "<b>"]


def decoded(png):
    with PIL.Image.open(io.BytesIO(png)) as image:
        image.load()
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def rgb(colour):
    return tuple(round(255 * part) for part in to_rgb(colour))


def where(image, colour, tolerance=2):
    """Rows and columns of the pixels of a colour."""
    return np.argwhere(np.abs(image.astype(int) - colour).max(axis=2) <= tolerance)


def box(image, colour):
    found = where(image, colour)
    assert len(found), f"no pixel is {colour}"
    return *found.min(0), *found.max(0)


def flat(colour, side=12):
    return np.full((side, side, 3), colour, np.uint8)


def projection(points):
    return pictures.Projection(points=np.asarray(points, np.float32), axes=("across", "up"), shares=None)


@pytest.fixture
def cloud():
    return projection(np.random.default_rng(0).normal(size=(80, 2)))


# Two groups of three numbers, each unlike the others and unlike what frames and text are drawn in.
NEIGHBOURS = [[(250, 0, 250), (0, 250, 0)], [(250, 250, 0), (0, 250, 250)]]


def test_sheet_frames_right_and_wrong_neighbours_where_they_stand():
    queries = np.stack([flat((120, 0, 60)), flat((60, 120, 0))])
    neighbours = np.stack([[flat(colour) for colour in row] for row in NEIGHBOURS])
    right = np.array([[True, False], [False, True]])
    image = decoded(pictures.sheet(queries, neighbours, right, ["first", "second"]))
    for row in range(2):
        for rank in range(2):
            top, left, bottom, after = box(image, NEIGHBOURS[row][rank])
            around = np.concatenate([image[top - 2, left:after], image[bottom + 2, left:after], image[top:bottom, left - 2]])
            wanted, other = (BLUE, VERMILLION) if right[row, rank] else (VERMILLION, BLUE)
            share = (np.abs(around.astype(int) - rgb(wanted)).max(1) < 30).mean()
            assert share > 0.9 if right[row, rank] else 0.5 < share < 0.85, "solid where right, dashed where wrong"
            assert not (np.abs(around.astype(int) - rgb(other)).max(1) < 30).any()


def test_sheet_signs_differ_without_colour():
    neighbours = np.stack([[flat((250, 0, 250)), flat((250, 250, 0))]])
    image = decoded(pictures.sheet(flat((9, 9, 9))[None], neighbours, np.array([[True, False]]), ["query"]))
    signs = []
    for colour in ((250, 0, 250), (250, 250, 0)):
        top, _, _, after = box(image, colour)
        signs.append((image[top : top + 26, after - 24 : after].min(axis=2) > 200).sum())
    assert all(count > 20 for count in signs), "a white sign stands in each badge"
    assert signs[0] != signs[1]


def test_sheet_puts_neighbours_in_order_beside_their_query():
    queries = np.stack([flat((120, 0, 60)), flat((60, 120, 0))])
    neighbours = np.stack([[flat(colour) for colour in row] for row in NEIGHBOURS])
    image = decoded(pictures.sheet(queries, neighbours, np.ones((2, 2), bool), ["first", "second"], captions=[["a", "b"], ["c", "d"]]))
    for query, row in zip(((120, 0, 60), (60, 120, 0)), NEIGHBOURS, strict=True):
        boxes = [box(image, colour) for colour in (query, *row)]
        assert [found[1] for found in boxes] == sorted(found[1] for found in boxes)
        assert max(found[0] for found in boxes) - min(found[0] for found in boxes) < 30


def test_scatter_shows_each_class_in_its_colour(cloud):
    labels = np.arange(80) % 7
    image = decoded(pictures.scatter(cloud, labels=labels, classes=[f"class {number}" for number in range(7)], title="title"))
    assert image.shape[0] > 700
    assert image.shape[1] > 1000
    for colour in COLOURS:
        assert len(where(image, rgb(colour))) > 20  # the legend is opaque


def test_scatter_draws_points_where_they_lie():
    image = decoded(pictures.scatter(projection([[0, 0], [10, 0], [0, 10], [10, 10]]), labels=np.array([0, 1, 1, 1])))
    blue = np.median(np.argwhere((image[..., 2] > 130) & (image[..., 0] < 90)), axis=0)
    orange = np.argwhere((image[..., 0] > 190) & (image[..., 2] < 90))
    assert blue[0] > np.median(orange[:, 0])
    assert blue[1] < orange[:, 1].max() - 300


def test_marks_are_distinct_and_the_first_differ_in_colour_and_shape():
    pairs = [mark(number) for number in range(DISTINCT)]
    assert len(set(pairs)) == DISTINCT >= 45
    assert len({colour for colour, _ in pairs[:7]}) == len({shape for _, shape in pairs[:7]}) == 7


def test_of_too_many_classes_the_largest_keep_their_marks():
    counts = np.arange(1, 61)
    labels = np.concatenate([np.repeat(np.arange(60), counts), [-1, -1]])
    groups = _groups(labels, [f"class {number}" for number in range(60)])
    assert [group.name for group in groups[:2]] == ["unknown", "12 smaller"]
    assert {group.name for group in groups[2:]} == {f"class {number}" for number in range(12, 60)}
    assert sorted(np.concatenate([group.members for group in groups]).tolist()) == list(range(len(labels)))


@pytest.mark.parametrize("labels", [None, np.full(80, -1), np.arange(80)])
def test_scatter_without_names_has_no_legend(cloud, labels):
    named = pictures.scatter(cloud, labels=np.arange(80) % 3, classes=["a", "b", "c"])
    bare = pictures.scatter(cloud, labels=labels, kind="block")
    assert decoded(bare).shape[1] < decoded(named).shape[1]


def test_thumbnails_stand_apart_each_framed_in_its_class():
    colours = [(250, 0, 250), (0, 250, 0), (250, 250, 0)]
    points = projection([[0, 0], [10, 0], [10, 10]])
    image = decoded(pictures.scatter_thumbnails(points, np.stack([flat(colour) for colour in colours]), labels=np.array([0, 1, 0])))
    boxes = [box(image, colour) for colour in colours]
    assert boxes[0][1] < boxes[1][1]
    assert boxes[2][0] < boxes[1][0]
    for (top, left, _, after), number in zip(boxes, (0, 1, 0), strict=True):
        frame = image[top - 1, left + 5 : after - 5].astype(int)
        assert np.abs(frame - rgb(COLOURS[number])).max() < 10


def test_of_tiles_in_one_place_the_most_central_is_shown(cloud):
    shown, cells = _thinned(cloud)
    assert len(np.unique(cells, axis=0)) == len(cells) == len(shown)
    crowded = projection(np.concatenate([np.random.default_rng(1).normal(scale=1e-4, size=(50, 2)), [[5.0, 5.0]]]))
    assert len(_thinned(crowded)[0]) <= 5
    assert 50 in _thinned(crowded)[0]


def test_alike_tiles_are_drawn_all_the_same():
    found = pictures.project_pca(np.ones((5, 3)))
    assert found.shares == (0.0, 0.0)
    decoded(pictures.scatter(found))
    decoded(pictures.scatter_thumbnails(found, np.zeros((5, 3, 4, 3), np.uint8)))


def test_pca_agrees_with_the_singular_value_decomposition():
    vectors = np.random.default_rng(2).normal(size=(60, 8)) * np.arange(1, 9)
    found = pictures.project_pca(vectors.astype(np.float32))
    centred = vectors - vectors.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    assert np.abs(found.points) == pytest.approx(np.abs(left[:, :2] * values[:2]), abs=1e-3)
    assert found.shares == pytest.approx(tuple((values**2 / (values**2).sum())[:2]), rel=1e-4)
    assert f"{found.shares[0]:.0%}" in found.axes[0]


def test_pca_of_one_dimension_has_a_second_axis_of_zeros():
    assert (pictures.project_pca(np.arange(6.0)[:, None]).points[:, 1] == 0).all()
    with pytest.raises(RetrievalError, match="1 tiles"):
        pictures.project_pca(np.ones((1, 3)))


def test_a_missing_umap_is_said_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    assert "rayjobs[umap]" in pictures.umap_missing()
    with pytest.raises(RetrievalError, match="pip install"):
        pictures.project_umap(np.ones((9, 2)), 0)


def test_confusion_colours_a_cell_by_its_share_of_the_true_class():
    image = decoded(pictures.confusion(np.array([[900, 100], [0, 0]]), ["one", "two"]))
    blues = mpl.colormaps["Blues"]
    many, few, none = (where(image, rgb(colour), 1) for colour in (blues(0.9), blues(0.1), "#dddddd"))
    assert all(len(found) > 500 for found in (many, few, none))
    (row, left), (same, right), (below, _) = (np.median(found, axis=0) for found in (many, few, none))
    assert abs(row - same) < 8
    assert left < right - 20
    assert row < below - 20, "a class without tiles has a grey row"


def test_confusion_of_45_classes_stays_readable():
    names = [f"land cover {number}" for number in range(45)]
    image = decoded(pictures.confusion(np.eye(45, dtype=int) * 1234, names))
    assert 1300 < image.shape[0] < 2500
    assert 1300 < image.shape[1] < 2500


def test_curves_draw_every_metric_and_survive_what_is_not_finite():
    series = {
        "train/loss": [(2, 0.5), (0, 1.0), (1, 0.7)],
        "rate": [(step, 10.0**-step) for step in range(6)],
        "mine/negatives": [(3, 100)],
        "lost": [(0, float("nan"))],
        "never": [],
    }
    image = decoded(pictures.curves(series, title="Training"))
    one = decoded(pictures.curves({"train/loss": series["train/loss"]}))
    assert image.shape[0] > one.shape[0]
    assert len(where(image, rgb(BLUE), 40)) > len(where(one, rgb(BLUE), 40))


def test_rows_chart_sets_our_row_off_and_puts_dots_in_order():
    rows = [
        {
            "name": "random-init",
            "metrics": {"MAP@R": {"value": 0.2, "low": 0.1, "high": 0.3}, "gSil": {"value": None, "low": None, "high": None}},
        },
        {
            "name": "trained",
            "metrics": {"MAP@R": {"value": 0.8, "low": 0.7, "high": 0.9}, "gSil": {"value": 0.1, "low": None, "high": None}},
        },
    ]
    image = decoded(pictures.rows_chart(rows, "MAP@R"))
    left = image[:, : image.shape[1] // 2]
    blue, ink = where(left, rgb(BLUE), 20), where(left, (0x22, 0x22, 0x22), 5)
    dots = ink[ink[:, 0] < blue[:, 0].min() - 5]
    assert len(blue) > 50
    assert len(dots) > 50
    assert blue[:, 1].max() > np.median(blue[:, 1]) > image.shape[1] * 0.2


@pytest.mark.parametrize("draw", ["scatter", "thumbnails", "sheet", "confusion", "curves", "rows"])
def test_hostile_names_are_drawn_as_they_are(draw):
    count = len(HOSTILE)
    labels, points = np.arange(count), projection(np.random.default_rng(4).normal(size=(count, 2)))
    tiles = np.zeros((count, 8, 8, 3), np.uint8)
    drawn = {
        "scatter": lambda: pictures.scatter(points, labels=labels, classes=HOSTILE, kind=HOSTILE[0], title=HOSTILE[0]),
        "thumbnails": lambda: pictures.scatter_thumbnails(points, tiles, labels=labels, classes=HOSTILE, title=HOSTILE[0]),
        "sheet": lambda: pictures.sheet(tiles, tiles[:, None], np.ones((count, 1), bool), HOSTILE, captions=[[name] for name in HOSTILE]),
        "confusion": lambda: pictures.confusion(np.eye(count, dtype=int), HOSTILE),
        "curves": lambda: pictures.curves({name: [(0, 1.0)] for name in HOSTILE}),
        "rows": lambda: pictures.rows_chart([{"name": name, "metrics": {HOSTILE[0]: {"value": 1.0}}} for name in HOSTILE], HOSTILE[0]),
    }
    image = decoded(drawn[draw]())
    assert image.shape[1] < 2600
    assert image.min() < 100


def test_a_name_is_put_on_one_line_and_cut():
    assert plain("a\n\tb\x00") == "a b"
    assert len(plain("x" * 300)) == 24
    assert plain("\n") == "(no name)"


def test_pictures_are_equal_for_equal_input(cloud):
    assert pictures.scatter(cloud) == pictures.scatter(cloud)


def test_pictures_need_no_display_and_no_state_of_pyplot(cloud):
    drawn = []
    thread = threading.Thread(target=lambda: drawn.append(pictures.scatter(cloud)))
    thread.start()
    thread.join()
    assert drawn == [pictures.scatter(cloud)]
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
