from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from rayjobs.errors import TrainingError
from rayjobs.metric.section import MiningSection
from rayjobs.tiles.neighbours import Neighbourhood
from rayjobs.train.batches import ByGeography, ByLabel, ByProportion, ByView, HardTiles, dealt, plan_epoch


def line(count):
    """Tiles in a row, each alike with the next."""
    return Neighbourhood.from_pairs(np.column_stack([np.arange(count - 1), np.arange(1, count)]), count)


def plan(supervision, **changed):
    settings = {"steps": 5, "batch": 12, "group": 2, "mined": None, "mined_share": 0.5} | changed
    return plan_epoch(supervision, np.random.default_rng([0, 1]), **settings)


def test_groups_of_geography_are_neighbours():
    found = plan(ByGeography(line(50)))
    pairs = found.members.reshape(5, 6, 2)
    assert (np.abs(pairs[:, :, 0] - pairs[:, :, 1]) == 1).all()
    assert np.array_equal(found.groups, np.repeat(np.arange(30), 2).reshape(5, 12))


def test_every_anchor_comes_before_any_comes_again():
    found = plan(ByGeography(line(30)))
    assert np.array_equal(np.sort(found.members.reshape(-1, 2)[:, 0]), np.arange(30))


def test_groups_of_labels_are_of_one_class_and_unknown_ones_stay_out():
    labels = np.array([0] * 40 + [1] * 5 + [2] * 3 + [-1] * 10)
    found = plan(ByLabel(labels), group=3)
    assert (labels[found.members] == found.groups).all()
    assert np.ptp(np.bincount(found.groups[:, ::3].ravel())) <= 1


def test_groups_of_views_are_one_tile_and_numbered_by_it():
    found = plan(ByView(20), group=3)
    tiles = found.members.reshape(5, 4, 3)
    assert (tiles == tiles[:, :, :1]).all()
    assert np.array_equal(found.groups, found.members), "alike in this batch and in any other"
    assert np.array_equal(np.sort(tiles[:, :, 0].ravel()), np.arange(20))
    assert not len(ByView(20).known_positives(3, 5))
    mined = HardTiles(negatives=np.roll(np.arange(20), 7)[:, None], positives=np.empty((20, 0), np.int64))
    joined = plan(ByView(20), mined=mined).members.reshape(5, 6, 2)
    assert (joined[:, :, 0] == joined[:, :, 1]).all()


@pytest.mark.parametrize(("classes", "groups"), [(15, 8), (15, 15), (7, 6), (5, 12), (3, 9), (4, 1)])
def test_a_batch_holds_p_classes_and_k_tiles_of_each(classes, groups):
    labels = np.random.default_rng(0).integers(0, classes, 600)
    found = plan(ByLabel(labels), steps=40, batch=3 * groups, group=3)
    of_groups = found.groups.reshape(40, groups, 3)
    assert (labels[found.members].reshape(40, groups, 3) == of_groups[:, :, :1]).all()
    for batch in of_groups[:, :, 0]:
        counts = np.bincount(batch, minlength=classes)
        assert counts.max() <= -(-groups // classes)
        assert counts.min() >= groups // classes
    assert np.ptp(np.bincount(of_groups[:, :, 0].ravel(), minlength=classes)) <= 1
    for tiles in found.members.reshape(-1, 3):
        assert len(set(tiles.tolist())) == 3, "a class with enough tiles repeats none"


def mixtures(count=400, classes=6, seed=0):
    """(tiles, classes) float32; the last ten are unknown."""
    found = np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), count).astype(np.float32)
    found[-10:] = 0
    return found


def shared(one, other):
    """One pair of tiles, in float64."""
    return sum(min(float(a), float(b)) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("min_shared", "group"), [(0.8, 2), (0.9, 3), (0.6, 6), (0.3, 4)])
def test_all_tiles_of_a_group_share_enough(min_shared, group):
    fractions = mixtures()
    supervision = ByProportion(fractions, min_shared=min_shared)
    found = plan(supervision, steps=20, batch=4 * group, group=group)
    for tiles in found.members.reshape(-1, group).tolist():
        assert all(shared(fractions[one], fractions[other]) >= min_shared - 2e-5 for one in tiles for other in tiles)
        assert tiles[0] not in tiles[1:]
    assert np.array_equal(found.groups[:, ::group].ravel(), np.arange(80)), "each group is its own kind"
    dominant = fractions.argmax(axis=1)[found.members[:, ::group]]
    assert all(len(set(batch)) == 4 for batch in dominant.tolist()), "different dominant classes meet"


@pytest.mark.parametrize("min_shared", [0.98, 0.8, 0.5, 0.3])
def test_anchors_are_the_tiles_that_share_enough_with_another(min_shared):
    fractions = mixtures(150)
    fractions[40:60] = fractions[20:40]  # tiles of one mixture are alike
    supervision = ByProportion(fractions, min_shared=min_shared)
    alike = np.array([[shared(one, other) >= min_shared for other in fractions] for one in fractions])
    np.fill_diagonal(alike, val=False)
    assert supervision.anchors.tolist() == np.flatnonzero(alike.any(axis=1)).tolist()
    rng = np.random.default_rng(0)
    for anchor in supervision.anchors[:20].tolist():
        partners = {int(supervision.group_of(rng, anchor, 2)[1]) for _ in range(300 if alike[anchor].sum() < 20 else 3)}
        assert partners <= set(np.flatnonzero(alike[anchor]))
        if alike[anchor].sum() < 20:
            assert partners == set(np.flatnonzero(alike[anchor])), "every partner is drawn now and then"


def test_few_alike_tiles_repeat():
    fractions = np.array([[1, 0], [0.95, 0.05], [0, 1], [0.05, 0.95], [0.5, 0.5]], np.float32)
    supervision = ByProportion(fractions, min_shared=0.9)
    assert supervision.anchors.tolist() == [0, 1, 2, 3]
    assert supervision.group_of(np.random.default_rng(0), 2, 4).tolist() == [2, 3, 3, 3]


def test_identical_mixtures_share_all_of_it():
    fractions = np.repeat(mixtures(40, 45)[:-10], 2, axis=0)
    assert len(ByProportion(fractions, min_shared=1.0).anchors) == len(fractions)


def test_mined_negatives_join_their_anchors():
    mined = np.stack([(np.arange(50) + 25) % 50, np.full(50, -1)], axis=1)
    found = plan(ByGeography(line(50)), mined=HardTiles(negatives=mined, positives=np.empty((50, 0), np.int64)))
    anchors = found.members.reshape(5, 6, 2)[:, :, 0]
    for of_batch in anchors:
        assert np.array_equal(of_batch[4:], (of_batch[:2] + 25) % 50)


@pytest.mark.parametrize(("share", "joined", "hosts"), [(0.5, 1, 4), (0.5, 2, 3), (1.0, 3, 3), (0.5, 5, 1), (1.0, 11, 1), (0.2, 3, 1)])
def test_as_many_mined_negatives_as_are_wanted_join_each_anchor(share, joined, hosts):
    mined = (np.arange(200)[:, None] + np.arange(60, 140, 7)) % 200
    near = ByGeography(line(200))
    found = plan(near, batch=24, mined=HardTiles(negatives=mined, positives=mined[:, :0]), mined_share=share, joined=joined)
    drawn = plan(near, batch=24).members.reshape(5, 12, 2)[:, :, 0]
    assert found.joined_share == 1
    for before, anchors in zip(drawn, found.members.reshape(5, 12, 2)[:, :, 0], strict=True):
        kept = 12 - hosts * joined
        assert anchors[:kept].tolist() == before[:kept].tolist()
        assert len(set(anchors[kept:].tolist()) - set(anchors[:kept].tolist())) == hosts * joined, "none comes twice"
        for host, guests in enumerate(anchors[kept:].reshape(hosts, joined)):
            assert set(guests.tolist()) <= set(mined[anchors[host]].tolist())


def test_no_more_join_than_are_mined():
    with pytest.raises(ValueError, match="joined 3 is above negatives 2"):
        MiningSection(negatives=2, joined=3)


def test_a_thin_table_is_seen():
    thin = np.where(np.arange(50) % 2, (np.arange(50) + 25) % 50, -1)[:, None]
    found = plan(ByGeography(line(50)), mined=HardTiles(negatives=thin, positives=thin[:, :0]))
    hosts = found.members.reshape(5, 6, 2)[:, :2, 0]
    assert found.joined_share == (hosts % 2).mean()
    assert 0 < found.joined_share < 1
    assert plan(ByGeography(line(50))).joined_share is None
    none = plan(ByGeography(line(50)), mined=HardTiles(negatives=thin, positives=thin[:, :0]), mined_share=0.0)
    assert none.joined_share is None


def test_batches_with_one_mined_negative_each_are_those_of_before():
    """Written down when nothing else could be chosen: a run that goes on must not meet other batches."""
    mined = (np.arange(50)[:, None] + np.arange(20, 28)) % 50
    found = plan(ByGeography(line(50)), steps=20, mined=HardTiles(negatives=mined, positives=mined[:, :2]))
    assert hashlib.sha256(found.members.tobytes() + found.groups.tobytes()).hexdigest()[:16] == "9e893882896ea619"


def test_a_plan_is_a_function_of_its_seed():
    again = [plan(ByGeography(line(50))).members for _ in range(2)]
    assert np.array_equal(*again)


def test_nothing_alike_is_an_error_with_a_remedy():
    with pytest.raises(TrainingError, match="max_pos_dist"):
        ByGeography(Neighbourhood.from_pairs(np.empty((0, 2), np.int64), 4))
    with pytest.raises(TrainingError, match="label more"):
        ByLabel(np.array([0, 0, 0, 1, -1]))
    for unlike in (np.eye(4, dtype=np.float32), np.empty((5, 0), np.float32), np.zeros((5, 3), np.float32)):
        with pytest.raises(TrainingError, match="min_pos_shared"):
            ByProportion(unlike, min_shared=0.8)


def kinds():
    """One of each supervision over 48 tiles, and which tiles are alike, written out."""
    labels = np.arange(48) % 4
    fractions = mixtures(48)
    fractions[-1] = 0
    near = np.abs(np.arange(48)[:, None] - np.arange(48)) == 1
    alike = np.array([[shared(one, other) >= 0.8 for other in fractions] for one in fractions])
    return {
        "geography": (ByGeography(line(48)), near),
        "labels": (ByLabel(labels), labels[:, None] == labels),
        "proportions": (ByProportion(fractions, min_shared=0.8), alike & (fractions.sum(axis=1) > 0)[:, None]),
    }


@pytest.mark.parametrize("kind", ["geography", "labels", "proportions"])
def test_known_positives_are_the_tiles_alike_and_of_many_some_of_their_own_for_each_anchor(kind):
    supervision, alike = kinds()[kind]
    np.fill_diagonal(alike, val=False)
    for anchor in range(48):
        every = np.flatnonzero(alike[anchor])
        assert supervision.known_positives(anchor, 48).tolist() == every.tolist()
        some = supervision.known_positives(anchor, 3).tolist()
        following = sorted(every.tolist(), key=lambda tile, anchor=anchor: (tile - anchor) % 48)
        assert some == sorted(following[:3])


@pytest.mark.parametrize("kind", ["geography", "labels", "proportions"])
@pytest.mark.parametrize("group", [2, 3])
def test_mined_positives_join_their_anchors_in_their_share_of_the_groups(kind, group):
    supervision, alike = kinds()[kind]
    hardest = np.array([supervision.known_positives(anchor, 48)[:1].tolist() or [-1] for anchor in range(48)])
    nobody = np.full((48, 1), -1)
    usual = plan(supervision, batch=6 * group, group=group, steps=20, mined=HardTiles(negatives=nobody, positives=nobody))
    found = plan(supervision, batch=6 * group, group=group, steps=20, mined=HardTiles(negatives=nobody, positives=hardest))
    groups = found.members.reshape(20, 6, group)
    assert (groups[:, :3, 1] == hardest[groups[:, :3, 0], 0]).all(), "half of the groups have the hard positive"
    assert (groups[:, 3:, 1] != hardest[groups[:, 3:, 0], 0]).any(), "the others are drawn as ever"
    assert np.array_equal(groups[:, :, 0], usual.members.reshape(20, 6, group)[:, :, 0])
    for anchor, partner, *_ in groups.reshape(-1, group).tolist():
        assert alike[anchor, partner]
        assert anchor != partner


def test_consecutive_tiles_of_a_batch_are_of_different_groups():
    """So that each worker's share and each micro-batch show batch norms many groups."""
    labels = np.repeat(np.arange(9), 8)
    planned = plan(ByLabel(labels), steps=5, batch=24, group=3)
    found = dealt(planned, 3)
    for before, after in zip(planned.members, found.members, strict=True):
        assert sorted(before) == sorted(after)
    assert (labels[found.members] == found.groups).all()
    for groups in found.groups:
        assert all(len(set(groups[start : start + 8])) == 8 for start in (0, 8, 16))
    clusters = dealt(replace(planned, clusters=planned.groups), 3).clusters
    assert np.array_equal(clusters, found.groups)
