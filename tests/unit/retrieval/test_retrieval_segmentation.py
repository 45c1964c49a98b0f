"""The segmentation probe and its metrics against naive loops, scikit-learn, and ground that is made to be divided."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from rayjobs.errors import RetrievalError
from rayjobs.retrieval import segmentation
from rayjobs.retrieval.intervals import bootstrap_interval
from rayjobs.retrieval.segmentation import (
    SEGMENTATION,
    Cells,
    PixelProbe,
    cell_shares,
    class_iou,
    confusion,
    joined,
    mean_iou,
    pixel_accuracy,
    sample_cells,
    segmentation_interval,
)


def labels_of(shape=(12, 10), classes=4, seed=0, unknown=0.2):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, shape)
    labels[rng.random(shape) < unknown] = -1
    return labels


@pytest.mark.parametrize("shape", [(3, 2), (5, 4), (12, 10), (1, 1)])
def test_the_shares_of_a_cell_are_counted_pixel_by_pixel(shape):
    labels = labels_of()
    expected = np.zeros((*shape, 4))
    for row in range(12):
        for col in range(10):
            if labels[row, col] >= 0:
                expected[int((row + 0.5) * shape[0] / 12), int((col + 0.5) * shape[1] / 10), labels[row, col]] += 1
    expected /= np.maximum(expected.sum(axis=2, keepdims=True), 1)
    np.testing.assert_allclose(cell_shares(labels, shape, 4), expected.reshape(-1, 4))


def naive_iou(truth, predicted, classes):
    found = []
    for name in range(classes):
        both = either = there = 0
        for true, guess in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
            if true >= 0:
                both += true == name == guess
                either += name in {true, guess}
                there += true == name
        found.append(both / either if there else float("nan"))
    return found


def test_iou_is_that_of_a_naive_loop_and_of_scikit_learn():
    truth, predicted = labels_of(classes=3), labels_of(classes=5, seed=1, unknown=0.0)
    found = confusion(truth, predicted, 5)
    np.testing.assert_allclose(class_iou(found), naive_iou(truth, predicted, 5))
    known = truth >= 0
    assert mean_iou(found) == pytest.approx(jaccard_score(truth[known], predicted[known], labels=[0, 1, 2], average="macro"))
    assert pixel_accuracy(found) == pytest.approx((truth == predicted)[known].mean())


def test_ground_without_a_class_has_no_figure():
    nothing = confusion(np.full((2, 2), -1), np.zeros((2, 2), int), 3)
    assert np.isnan(mean_iou(nothing))
    assert np.isnan(pixel_accuracy(nothing))


def test_accuracy_over_tiles_of_one_size_has_the_interval_of_a_mean():
    truth = [labels_of(seed=seed, unknown=0.0) for seed in range(20)]
    guess = [np.where(labels_of(seed=seed + 100) < seed % 4, of_tile, 0) for seed, of_tile in enumerate(truth)]
    confusions = np.stack([confusion(*pair, 4) for pair in zip(truth, guess, strict=True)])
    units = np.arange(20) // 3
    found = segmentation_interval("pixel_accuracy", confusions, units, resamples=300, seed=4)
    expected = bootstrap_interval(np.array([(a == b).mean() for a, b in zip(truth, guess, strict=True)]), units, resamples=300, seed=4)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert found.units == expected.units


def test_the_interval_of_mean_iou_resamples_the_sums_of_units():
    rng = np.random.default_rng(0)
    confusions, units = rng.integers(0, 50, (9, 3, 3)), np.repeat(["x", "y", "z"], 3)
    found = segmentation_interval("mIoU", confusions, units, resamples=200, seed=1)
    draws = np.random.default_rng(1).multinomial(3, [1 / 3] * 3, size=200)
    values = []
    for times in draws:
        total = sum(times[unit] * confusions[3 * unit + tile] for unit in range(3) for tile in range(3))
        values.append(np.mean([total[c, c] / (total[c].sum() + total[:, c].sum() - total[c, c]) for c in range(3) if total[c].sum()]))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
    for metric in SEGMENTATION:
        same = segmentation_interval(metric, confusions, units, minus=confusions, resamples=200)
        assert (same.value, same.low, same.high) == (0, 0, 0)


def divided(tiles=12, side=4, pixels=16, seed=0):
    """Ground of classes 0, 1 and 3 of four, each cell of one class, and features that tell them apart but for noise."""
    rng = np.random.default_rng(seed)
    of_cell = np.array([0, 1, 3])[rng.integers(0, 3, (tiles, side, side))]
    features = np.eye(4, 6)[of_cell] * 4 + rng.normal(size=(tiles, side, side, 6))
    labels = of_cell.repeat(pixels // side, axis=1).repeat(pixels // side, axis=2)
    return np.moveaxis(features, 3, 1).astype(np.float32), list(labels), np.array([f"unit{tile // 2}" for tile in range(tiles)])


def cells_of(features, labels, units, per_tile=16):
    return sample_cells(features, labels, units, 4, per_tile=per_tile, rng=np.random.default_rng(0))


def test_what_is_divided_is_found_again_on_other_ground():
    probe = PixelProbe.fit(cells_of(*divided()))
    features, labels, _ = divided(seed=1)
    predicted = probe.predict(features, [of_tile.shape for of_tile in labels])
    found = sum(confusion(truth, guess, 4) for truth, guess in zip(labels, predicted, strict=True))
    assert pixel_accuracy(found) > 0.8  # edges between cells are smoothed
    assert found[:, 2].sum() == 0
    again = PixelProbe.fit(cells_of(*divided()))
    assert again.penalty == probe.penalty
    np.testing.assert_array_equal(again.predict(features, [(9, 7)] * 12), probe.predict(features, [(9, 7)] * 12))


def naive_bilinear(grid, height, width):
    """Interpolate (h, w, classes) between centres of cells; beyond the outer ones the nearest holds."""
    found = np.empty((height, width, grid.shape[2]))
    for row in range(height):
        for col in range(width):
            y = min(max((row + 0.5) * grid.shape[0] / height - 0.5, 0), grid.shape[0] - 1)
            x = min(max((col + 0.5) * grid.shape[1] / width - 0.5, 0), grid.shape[1] - 1)
            top, left = min(int(y), grid.shape[0] - 2), min(int(x), grid.shape[1] - 2)
            part, share = y - top, x - left
            upper = grid[top, left] * (1 - share) + grid[top, left + 1] * share
            lower = grid[top + 1, left] * (1 - share) + grid[top + 1, left + 1] * share
            found[row, col] = upper * (1 - part) + lower * part
    return found


@pytest.mark.parametrize("classes", [[0, 1, 3], [1, 3]])
def test_pixels_take_the_class_of_the_interpolated_logits(classes):
    features, labels, units = divided()
    cells = cells_of(features, [np.where(np.isin(of_tile, classes), of_tile, -1) for of_tile in labels], units)
    probe = PixelProbe.fit(cells)
    (found,) = probe.predict(features[:1], [(13, 11)])
    raw = probe.pipeline.decision_function(features[0].reshape(6, -1).T).astype(np.float64)
    logits = raw if raw.ndim > 1 else np.stack([np.zeros_like(raw), raw], axis=1)
    expected = np.array(classes)[naive_bilinear(logits.reshape(4, 4, -1), 13, 11).argmax(axis=2)]
    np.testing.assert_array_equal(found, expected)


def test_logits_are_held_of_one_tile_at_a_time(monkeypatch):
    features, labels, units = divided()
    probe, held = PixelProbe.fit(cells_of(features, labels, units)), []
    logits = segmentation._logits
    monkeypatch.setattr(segmentation, "_logits", lambda pipeline, cells: held.append(len(cells)) or logits(pipeline, cells))
    probe.predict(features, [(16, 16)] * 12)
    assert held == [4 * 4] * 12


def test_a_cell_of_two_classes_counts_for_each_by_its_share():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 3)).astype(np.float32)
    shares = rng.dirichlet([1, 1, 1], 200)
    probe = PixelProbe.fit(Cells(features=features, shares=shares, units=np.arange(200) // 50))
    inputs = probe.pipeline[0].transform(features).astype(np.float64)
    weight = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        log = torch.log_softmax(torch.from_numpy(inputs) @ weight.T + bias, 1)
        cost = -(torch.from_numpy(shares) * log).sum() + 0.5 / probe.penalty * weight.square().sum()
        cost.backward()
        return cost

    optimizer.step(closure)
    np.testing.assert_allclose(probe.pipeline[1].coef_, weight.detach().numpy(), atol=2e-3)


def test_a_sample_of_cells_is_bounded_and_knows_its_classes():
    features, labels, units = divided()
    labels[0] = np.full_like(labels[0], -1)
    cells = cells_of(features, labels, units, per_tile=5)
    assert len(cells.features) == 5 * 11 == len(cells.shares) == len(cells.units)
    assert (cells.units != "unit0").sum() == 50
    np.testing.assert_allclose(cells.shares.sum(axis=1), 1)
    every = features.transpose(0, 2, 3, 1).reshape(-1, 6)
    for vector, shares in zip(cells.features, cells.shares, strict=True):
        tile, cell = divmod(int(np.flatnonzero((every == vector).all(axis=1))[0]), 16)
        assert shares[labels[tile][4 * (cell // 4), 4 * (cell % 4)]] == 1
    both = joined([cells, cells])
    assert both.features.shape == (110, 6)


def test_one_class_cannot_be_divided():
    features, labels, units = divided()
    with pytest.raises(RetrievalError, match="two classes"):
        PixelProbe.fit(cells_of(features, [np.zeros_like(of_tile) for of_tile in labels], units))


def test_one_unit_leaves_nothing_to_choose_by():
    features, labels, _ = divided()
    assert PixelProbe.fit(cells_of(features, labels, np.array(["a"] * 12))).penalty == 1e-2
