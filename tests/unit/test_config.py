from __future__ import annotations

from typing import Annotated, Literal

import pydantic
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rayjobs.config import apply_overrides, build, changed_keys, flatten, keys, parse_overrides, read_yaml, section, to_dict, to_yaml
from rayjobs.errors import ConfigError


@section
class Circle:
    """A kind of shape."""

    kind: Literal["circle"] = "circle"
    radius: Annotated[float, pydantic.Field(gt=0)] = 1.0
    """Of the circle."""


@section
class Square:
    """Another."""

    kind: Literal["square"] = "square"
    side: float
    """Of the square."""
    corners: Literal["sharp", "round"] | None = None
    """Their form."""
    radius: float = 0.5
    """Of round corners."""


@section
class Frame:
    """What may be round it."""

    wood: Literal["oak", "pine"] = "oak"
    """Of what it is."""
    gilt: bool = False
    """Whether it shines."""


Shape = Annotated[Circle | Square, pydantic.Field(discriminator="kind")]


@section
class Drawing:
    """What holds them."""

    title: str
    """Shown above."""
    shape: Shape = Circle()
    pens: tuple[int, ...] = (1, 2)
    """Widths."""


@section
class Album:
    """Sections in lists, sections that may be absent, and a default that is not the first kind's."""

    drawings: tuple[Drawing, ...]
    """All of them."""
    mark: Shape = Square(side=3.0)
    """On each page."""
    frame: Frame | None = None
    """Round each page."""


@section
class Poster(Drawing):
    """What inherits keys, and declares one of them anew."""

    shape: Shape = Square(side=2.0)
    """The only one."""
    glossy: bool = False
    """How it is printed."""


def fault(raw):
    with pytest.raises(ConfigError) as caught:
        build(Drawing, raw)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_stand_where_nothing_is_said():
    assert build(Drawing, {"title": "a"}) == Drawing(title="a", shape=Circle(radius=1.0), pens=(1, 2))


def test_the_tag_chooses_the_member_of_a_union():
    assert build(Drawing, {"title": "a", "shape": {"kind": "square", "side": 2}}).shape == Square(side=2)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"titel": "a"}, "unknown key 'titel'; did you mean 'title'?"),
        ({"title": "a", "shape": {"kind": "circle", "raduis": 1}}, "unknown key 'shape.raduis'; did you mean 'shape.radius'?"),
        ({"title": "a", "zzzzzz": 1}, "unknown key 'zzzzzz'; `--help` lists the keys"),
        ({}, "'title' is required"),
        ({"title": "a", "shape": {"kind": "square"}}, "'shape.side' is required"),
        ({"title": "a", "shape": {"kind": "circle", "radius": -1}}, "shape.radius = -1"),
        ({"title": "a", "pens": [1, "x"]}, "pens.1 = 'x'"),
        ({"title": "a", "shape": {"kind": "star"}}, "'circle', 'square'"),
        ({"title": None}, "title is empty (null): input should be a valid string"),
        ({"title": 7}, "title = 7: should be text; put it in quotes"),
        ({"title": "a", "pens": {"width": True}}, 'pens = {"width": true}: should be a list'),
    ],
)
def test_a_fault_names_the_users_key(raw, words):
    assert words in fault(raw)


def test_all_faults_come_together():
    assert fault({"titel": "a", "pens": 1}).count(";") >= 2


def test_overrides_are_yaml_values():
    arguments = ["--shape.radius", "2.5", "--pens=[3, 4]", "--title", "null", "--shape.line-width=a=b"]
    assert parse_overrides(arguments) == {"shape.radius": 2.5, "pens": [3, 4], "title": None, "shape.line_width": "a=b"}


@pytest.mark.parametrize("arguments", [["radius", "1"], ["--radius"], ["--"], ["--radius", "[1"], ["-r", "1"]])
def test_what_is_no_override_is_refused(arguments):
    with pytest.raises(ConfigError):
        parse_overrides(arguments)


def test_overrides_go_into_a_copy():
    raw = {"title": "a", "shape": {"kind": "circle", "radius": 1}}
    changed = apply_overrides(raw, {"shape.radius": 3, "pens": [9], "new.deep.key": 1})
    assert changed == {"title": "a", "shape": {"kind": "circle", "radius": 3}, "pens": [9], "new": {"deep": {"key": 1}}}
    assert raw == {"title": "a", "shape": {"kind": "circle", "radius": 1}}


def test_an_override_does_not_lead_through_a_value():
    with pytest.raises(ConfigError, match="title is a value, not a section"):
        apply_overrides({"title": "a"}, {"title.size": 1})


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (
            "rasters.sources.root",
            "--rasters.sources.root: rasters.sources is a list, and lists are given whole: --rasters.sources '[{root: ",
        ),
        (
            "rasters.sources.0.root",
            "--rasters.sources.0.root: rasters.sources is a list, and lists are given whole: --rasters.sources '[{root: ",
        ),
        ("rasters.bands.first.x", "rasters.bands is a value, not a section"),
    ],
)
def test_an_override_below_a_list_names_the_whole_key_and_the_remedy(key, words):
    with pytest.raises(ConfigError) as caught:
        apply_overrides({"rasters": {"sources": [{"kind": "images"}], "bands": "red"}}, {key: 1})
    assert words in str(caught.value)


@example("\x85", 1.0, [])
@given(st.text(), st.floats(min_value=1e-6, max_value=1e6), st.lists(st.integers(-(2**40), 2**40)))
def test_yaml_reads_back_to_the_same_value(tmp_path_factory, title, radius, pens):
    drawing = Drawing(title=title, shape=Circle(radius=radius), pens=tuple(pens))
    path = tmp_path_factory.mktemp("yaml", numbered=True) / "drawing.yaml"
    path.write_text(to_yaml(drawing), encoding="utf-8")
    assert build(Drawing, read_yaml(path)) == drawing


@pytest.mark.parametrize("content", [b"[1, 2]", b"a: [", b"\xff\xfe\x00", b""])
def test_a_file_that_is_no_mapping_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.yaml") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name: caf\xe9\n", "a.yaml is not UTF-8 text (byte 10 cannot be read): save it as UTF-8"),
        (b"name: a\ntiles: {size: 3\nmodel: {}\n", "a.yaml is not valid YAML: line 3, column"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(tmp_path, content, words):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the experiment file .*b\.yaml"):
        read_yaml(tmp_path / "b.yaml")


def test_keys_of_all_members_are_listed_with_default_and_description():
    found = list(keys(Drawing))
    paths = ["title", "shape.kind", "shape.radius", "shape.side", "shape.corners", "shape.radius", "pens"]
    assert [key.path for key in found] == paths
    assert found[0].default == "required"
    assert [(key.default, key.description, key.kinds) for key in found if key.path == "shape.radius"] == [
        ("1.0", "Of the circle.", ("circle",)),
        ("0.5", "Of round corners.", ("square",)),
    ]


def test_choices_and_the_kinds_that_own_a_key_are_listed():
    found = {key.path: key for key in keys(Drawing)}
    assert (found["shape.kind"].choices, found["shape.kind"].default, found["shape.kind"].kinds) == (("circle", "square"), '"circle"', ())
    assert (found["shape.corners"].choices, found["shape.corners"].kinds) == (("sharp", "round", "null"), ("square",))
    assert (found["title"].choices, found["title"].kinds) == ((), ())


def test_keys_below_a_list_are_no_options_and_defaults_are_the_sections_own():
    found = {key.path: key for key in keys(Album)}
    assert found["drawings"].is_option
    assert not found["drawings[].title"].is_option
    assert not found["drawings[].shape.side"].is_option
    assert (found["mark.kind"].default, found["mark.side"].default) == ('"square"', "3.0")
    assert (found["frame"].default, found["frame"].description) == ("null", "Round each page.")
    assert found["frame.gilt"].choices == ("true", "false")
    assert "mark" not in found


def test_inherited_keys_keep_their_descriptions_and_stand_after_a_sections_own():
    found = {key.path: key.description for key in keys(Poster) if "." not in key.path or key.path.endswith(".kind")}
    assert list(found.items()) == [
        ("shape.kind", "The only one."),
        ("glossy", "How it is printed."),
        ("title", "Shown above."),
        ("pens", "Widths."),
    ]
    schema = pydantic.TypeAdapter(Poster).json_schema()["properties"]
    assert {name: one["description"] for name, one in schema.items()} == {
        "title": "Shown above.",
        "shape": "The only one.",
        "pens": "Widths.",
        "glossy": "How it is printed.",
    }


def test_changed_keys_are_named_with_both_values():
    old = to_dict(Drawing(title="a"))
    new = to_dict(Drawing(title="b", shape=Circle(radius=2.0)))
    assert changed_keys(old, new) == ["shape.radius: 1.0 -> 2.0", "title: 'a' -> 'b'"]
    assert changed_keys(old, old) == []


def test_changed_keys_are_written_as_in_the_file():
    old = {"train": {"steps": 4, "ema": True}, "loss": {"margin": 0.2}, "bands": ["a", None]}
    new = {"train": {"steps": None, "ema": False}, "loss": {}, "bands": ["a"]}
    assert changed_keys(old, new) == [
        'bands: ["a", null] -> ["a"]',
        "loss: not set -> {}",
        "loss.margin: 0.2 -> not set",
        "train.ema: true -> false",
        "train.steps: 4 -> null",
    ]


def test_flatten_keeps_lists_and_empty_mappings():
    assert flatten({"a": {"b": [1, {"c": 2}], "d": {}}, "e": None}) == {"a.b": [1, {"c": 2}], "a.d": {}, "e": None}
