"""The `ray` section as people write it."""

from __future__ import annotations

import pytest

from rayjobs.cluster.section import RaySection
from rayjobs.config import build, parse_overrides
from rayjobs.errors import ConfigError


@pytest.mark.parametrize("word", ["yes", "no", "auto", "'yes'"])
def test_yes_and_no_are_words_though_yaml_has_them_for_truth(word):
    overrides = parse_overrides(["--gpu", word])
    assert build(RaySection, overrides).gpu == word.strip("'")


@pytest.mark.parametrize("word", ["1", "maybe", "[yes]"])
def test_other_words_are_refused(word):
    with pytest.raises(ConfigError, match="'auto', 'yes' or 'no'"):
        build(RaySection, parse_overrides(["--gpu", word]))
