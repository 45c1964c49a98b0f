from __future__ import annotations

import pytest

from rayjobs.errors import DamagedError, LabelError, UnknownTaxonomyError
from rayjobs.labels.taxonomy import LabelClass, Taxonomy, publish_taxonomy, read_taxonomy, taxonomy_names
from tests.unit.labels.saying import LAND, land


def classes(*names, **formerly):
    return [LabelClass(name=name, formerly=tuple(formerly.get(name, ()))) for name in names]


def test_a_taxonomy_is_read_as_it_was_written(store):
    made = publish_taxonomy(
        store, "land", [LabelClass(name="field", key="f", colour="#00ff00", description="tilled"), LabelClass(name="forest")]
    )
    assert read_taxonomy(store, "land") == made
    assert made.classes[0] == LabelClass(name="field", key="f", colour="#00ff00", description="tilled")
    assert (made.version, taxonomy_names(store)) == (1, ["land"])


def test_keys_and_colours_that_are_not_given_are_free_ones(local):
    made = publish_taxonomy(local, "land", [LabelClass(name="field", key="1"), LabelClass(name="forest"), LabelClass(name="water")])
    assert [one.key for one in made.classes] == ["1", "2", "3"]
    assert len({one.colour for one in made.classes}) == 3


def test_the_same_classes_again_make_no_version(local):
    assert land(local) == land(local)


def test_a_version_adds_and_renames(local):
    first = land(local)
    second = publish_taxonomy(local, "land", classes("meadow", "forest", "water", "town", meadow=["field"]))
    assert second.version == 2
    assert second.renamed == {"field": "meadow"}
    assert [one.key for one in second.classes[:3]] == [one.key for one in first.classes], "who labels keeps the keys"
    third = publish_taxonomy(local, "land", classes("grass", "forest", "water", "town", grass=["meadow"]))
    assert third.renamed == {"field": "grass", "meadow": "grass"}
    assert read_taxonomy(local, "land", known=first) == third
    for name in ("grass", "meadow", "field"):
        third.check(name)
    with pytest.raises(LabelError, match="no class 'lake'"):
        third.check("lake")


@pytest.mark.parametrize(
    "given",
    [
        classes("field", "forest"),  # water is gone
        classes("meadow", "forest", "water"),  # field is gone, and nobody says that meadow was it
        classes("field", "forest", "water", "lake", lake=["water"]),  # water would be two classes
    ],
)
def test_a_name_never_means_another_class(local, given):
    land(local)
    with pytest.raises(LabelError):
        publish_taxonomy(local, "land", given)
    assert read_taxonomy(local, "land").version == 1


@pytest.mark.parametrize("name", ["", "Land", "../x", "taxonomies", "a/b", "x" * 65, ".hidden"])
def test_names_that_are_no_folder_are_refused(local, name):
    with pytest.raises(LabelError):
        land(local, name=name)
    with pytest.raises(UnknownTaxonomyError):
        read_taxonomy(local, name)


@pytest.mark.parametrize(
    "one",
    [
        {"name": " x"},
        {"name": "a/b"},
        {"name": ".."},
        {"name": "x."},
        {"name": "=1+1"},
        {"name": "+x"},
        {"name": "-x"},
        {"name": "@x"},
        {"name": "x", "colour": "red"},
        {"name": "x", "key": "u"},
        {"name": "x\n"},
        {"name": "Unsure"},
    ],
)
def test_classes_that_cannot_be_shown_are_refused(one):
    with pytest.raises(LabelError):
        LabelClass(**one)


def test_one_class_is_no_taxonomy(local):
    with pytest.raises(LabelError, match="1 classes"):
        land(local, classes=("field",))
    with pytest.raises(LabelError, match="two classes have the key"):
        Taxonomy(name="x", version=1, classes=(LabelClass(name="a", key="1"), LabelClass(name="b", key="1")))


def test_classes_differ_by_more_than_their_case(local):
    for names in (("Field", "field"), ("stra\xdfe", "STRASSE")):
        with pytest.raises(LabelError, match="two classes have the name"):
            publish_taxonomy(local, "land", classes(*names))
    land(local)
    assert publish_taxonomy(local, "land", classes("Field", "forest", "water", Field=["field"])).renamed == {"field": "Field"}


def test_a_kill_between_version_and_list_is_healed(local):
    land(local)
    local.delete("labels/taxonomies/land.json")
    assert taxonomy_names(local) == []
    assert [one.name for one in land(local).classes] == list(LAND)
    assert taxonomy_names(local) == ["land"]


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", b'{"name": "land"}', b'{"name": "land", "version": 1, "classes": [1]}'])
def test_a_damaged_version_is_named(local, data):
    land(local)
    local.write("labels/land/taxonomy/00001.json", data)
    with pytest.raises(DamagedError, match=r"land/taxonomy/00001\.json is no version"):
        read_taxonomy(local, "land")
