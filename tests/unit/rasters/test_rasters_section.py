"""The section as a person writes it."""

from __future__ import annotations

import pytest
import yaml

from rayjobs.config import build, to_yaml
from rayjobs.errors import ConfigError
from rayjobs.rasters.label_map import LabelMap
from rayjobs.rasters.section import RastersSection

FULL = """
sources:
  - {kind: files, uris: [s3://b/*.tif], bands: [red, nir], pattern: '(?P<scene>T\\d+)', datetime: 2020-06-29, nodata: 0, scale: 0.0001,
     offset: -0.1, quality: {uri: 's3://b/{scene}_qa.tif', bits: [1, 3]}, name: a, platform: sentinel-2a}
  - {kind: stac, items: [items.json], assets: {red: B04}, quality: {asset: scl, classes: [3, 8]}}
  - {kind: images, root: pictures, labels: csv, csv: t.csv, csv_file_column: f, csv_label_column: c, resolution_m: 0.5, extensions: [.jpg]}
bands: [nir, red]
aoi: [1, 2, 3, 4]
datetime: 2020-01-01/..
radiometry: physical
sentinel2_check: warn
label_map: {uri: nlcd.tif, classes: {11: water, 41: forest}, nodata: 255}
max_bad_fraction: 0.1
"""


def section(text):
    return build(RastersSection, yaml.safe_load(text))


def test_every_key_is_read_and_written_back():
    found = section(FULL)
    assert section(to_yaml(found)) == found
    assert [source.kind for source in found.sources] == ["files", "stac", "images"]
    assert found.sources[0].datetime == "2020-06-29"  # YAML reads a bare date as a date
    assert found.label_map.classes == {11: "water", 41: "forest"}


def test_the_label_map_is_made_of_its_section():
    label_map = LabelMap(**section(FULL).label_map.arguments())
    assert (label_map.uri, label_map.names, label_map.nodata) == ("nlcd.tif", ("water", "forest"), 255)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: []", "at least one source"),
        ("sources: [{kind: files, uris: []}]", "at least one file"),
        ("sources: [{kind: file, uris: [a]}]", "kind"),
        ("sources: [{kind: files, urls: [a]}]", "unknown key 'sources.0.urls'"),
        ("sources: [{kind: files, uris: [a], pattern: '('}]", "not a regular expression"),
        ("sources: [{kind: files, uris: [a], pattern: 'x'}]", r"needs one or more of the groups"),
        ("sources: [{kind: files, uris: [a], pattern: '(?P<tile>x)'}]", "and no others"),
        ("sources: [{kind: files, uris: [a], quality: {uri: x}}]", "`bits` or the `classes`"),
        ("sources: [{kind: files, uris: [a], quality: {bits: [1]}}]", "layer's `uri`"),
        ("sources: [{kind: files, uris: [a], quality: {uri: x, band: qa, bits: [1]}}]", "counted from 1"),
        ("sources: [{kind: stac, items: [a], quality: {asset: x}}]", "`bits` or the `classes`"),
        ("sources: [{kind: images, root: a, labels: csv}]", "need the table"),
        ("sources: [{kind: images, root: a, csv: t.csv}]", "nothing is read off the table"),
        ("{sources: [{kind: files, uris: [a]}], bands: [a, a]}", "each once"),
        ("{sources: [{kind: files, uris: [a]}], max_bad_fraction: 2}", "max_bad_fraction = 2"),
        ("{sources: [{kind: files, uris: [a]}], radiometry: calibrated}", "radiometry"),
        ("{sources: [{kind: files, uris: [a]}], label_map: {uri: a, classes: {}}}", "at least one class"),
        ("{sources: [{kind: files, uris: [a]}], label_map: {uri: a, classes: {water: 11}}}", "classes"),
    ],
)
def test_mistakes_are_named_on_one_line(text, message):
    with pytest.raises(ConfigError, match=message) as error:
        section(text)
    assert "\n" not in str(error.value)
