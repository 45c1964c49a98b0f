from __future__ import annotations

import pytest

from rayjobs import config
from rayjobs.errors import ConfigError
from rayjobs.tiles.section import SPLITS, ClusterSampler, GridSampler, RandomSampler, TilesSection


def test_defaults_stand_as_documented():
    section = config.build(TilesSection, {})
    assert (section.size, section.sampler, section.splits.shares) == (64, RandomSampler(count=1000), (0.6, 0.2, 0.2))
    assert SPLITS == ("train", "val", "test")


def test_each_sampler_has_its_own_keys():
    assert config.build(TilesSection, {"sampler": {"kind": "grid", "stride": 32}}).sampler == GridSampler(stride=32)
    assert config.build(TilesSection, {"sampler": {"kind": "cluster"}}).sampler == ClusterSampler()
    with pytest.raises(ConfigError, match=r"sampler\.stride"):
        config.build(TilesSection, {"sampler": {"kind": "random", "stride": 32}})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"splits": {"train": 0.5, "val": 0.1, "test": 0.1}}, "add up to 1"),
        ({"splits": {"train": 1.2}}, "train"),
        ({"splits": {"buffer_m": -1}}, "buffer_m"),
        ({"min_pos_dist": 2.0}, "min_pos_dist 2.0 is above max_pos_dist 1.5"),
        ({"max_neg_dist": 3.0}, "min_neg_dist 4.0 is above max_neg_dist 3.0"),
        ({"size": 0}, "size"),
        ({"min_valid_fraction": 1.5}, "min_valid_fraction"),
        ({"sampler": {"kind": "cluster", "radius": 0}}, "radius"),
        ({"sizes": 64}, "did you mean 'size'"),
    ],
)
def test_a_wrong_value_is_refused_by_name(raw, message):
    with pytest.raises(ConfigError, match=message):
        config.build(TilesSection, raw)


def test_null_is_the_whole_image_and_survives_yaml():
    section = config.build(TilesSection, {"size": None})
    assert section.size is None
    assert config.build(TilesSection, config.to_dict(section)) == section
