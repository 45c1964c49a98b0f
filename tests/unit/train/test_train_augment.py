from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch

from rayjobs import config
from rayjobs.errors import ConfigError
from rayjobs.train.augment import Draws, augment, recoloured, resampled, tinted, turned
from rayjobs.train.section import AugmentSection, TrainSection

BANDS = 3
MEAN, STD = (100.0, 2000.0, -5.0), (10.0, 300.0, 0.5)
DTYPES = [torch.uint8, torch.uint16, torch.int32, torch.float32]
EVERYTHING = {
    "rotate_degrees": 30.0, "crop_scale": [0.5, 1.0], "brightness": 0.3, "jitter": 0.2, "contrast": 0.2, "saturation": 0.5,
    "hue_degrees": 30.0, "greyscale": 0.2, "band_dropout": 0.3, "noise": 0.2,
}  # fmt: skip


def section(**values):
    return config.build(AugmentSection, {"symmetries": False} | values)


def images(count=4, height=12, width=12, dtype=torch.int32):
    """Images that no symmetry maps to itself, and masks with one in four pixels invalid."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 250, (count, BANDS, height, width), generator=generator, dtype=torch.int32).to(dtype)
    return pixels, torch.rand((count, height, width), generator=generator) > 0.25


def draws(count, seed=0, share=slice(None)):
    return Draws(generator=torch.Generator().manual_seed(seed), batch=count, share=share)


def changed(pixels, valid, seed=0, **values):
    return augment(pixels, valid, section(**values), MEAN, STD, draws(len(pixels), seed), colours=range(BANDS))


def test_a_share_of_a_batch_is_changed_as_in_the_whole():
    pixels, valid = images(7, dtype=torch.float32)
    whole, masks = changed(pixels, valid, symmetries=True, **EVERYTHING)
    parts = [
        augment(pixels[share], valid[share], section(symmetries=True, **EVERYTHING), MEAN, STD, draws(7, share=share), colours=range(3))
        for share in (slice(0, 3), slice(3, 7))
    ]
    torch.testing.assert_close(torch.cat([found for found, _ in parts]), whole)
    assert torch.equal(torch.cat([mask for _, mask in parts]), masks)


def all_symmetries(image):
    """The eight of the square by numpy alone: four turns of the image and of its mirror image."""
    return [np.rot90(mirrored, turns, axes=(-2, -1)) for mirrored in (image, np.flip(image, -1)) for turns in range(4)]


def test_nothing_changes_where_all_is_off():
    pixels, valid = images()
    found, mask = changed(pixels, valid)
    assert found is pixels
    assert mask is valid


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_eight_symmetries_are_those_of_numpy(dtype):
    pixels, valid = images(8, dtype=dtype)
    pixels, valid = (values[:1].expand_as(values).contiguous() for values in (pixels, valid))
    found, masks = turned(pixels, valid, torch.arange(8))
    assert found.dtype == dtype
    wanted = list(zip(all_symmetries(pixels[0].numpy()), all_symmetries(valid[0].numpy()), strict=True))
    places = [
        [np.array_equal(image, one) and np.array_equal(mask, its_mask) for one, its_mask in wanted].index(True)
        for image, mask in zip(found.numpy(), masks.numpy(), strict=True)
    ]
    assert sorted(places) == list(range(8))
    assert places[0] == 0


def test_a_rectangle_keeps_its_orientation():
    pixels, valid = images(64, 6, 10)
    found, masks = changed(pixels, valid, symmetries=True)
    seen = set()
    for before, after, mask, its_mask in zip(pixels.numpy(), found.numpy(), valid.numpy(), masks.numpy(), strict=True):
        axes = [axes for axes in ((), (-1,), (-2,), (-2, -1)) if np.array_equal(np.flip(before, axes), after)]
        assert np.array_equal(np.flip(mask, axes[0]), its_mask)
        seen.update(axes)
    assert len(seen) == 4


def test_all_symmetries_occur_equally_often():
    pixels = torch.arange(16).reshape(1, 1, 4, 4).expand(4000, 1, 4, 4)
    found, _ = changed(pixels, torch.ones(4000, 4, 4, dtype=torch.bool), symmetries=True)
    _, counts = found.reshape(4000, 16).unique(dim=0, return_counts=True)
    assert len(counts) == 8
    assert (counts - 500).abs().max() < 4.5 * np.sqrt(500 * 7 / 8)


def linear(height, width, slopes):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([row * (rows - (height - 1) / 2) + column * (columns - (width - 1) / 2) for row, column in slopes])


@pytest.mark.parametrize("degrees", [90.0, -90.0, 180.0])
def test_right_angles_of_the_free_rotation_are_those_of_numpy(degrees):
    pixels, valid = images()
    found, masks = resampled(pixels, valid, torch.full((4,), degrees), torch.ones(4), torch.zeros(4, 2))
    turns = int(degrees // 90)
    assert np.array_equal(masks.numpy(), np.rot90(valid.numpy(), turns, axes=(-2, -1)))
    wanted = np.rot90(pixels.numpy(), turns, axes=(-2, -1))
    kept = np.broadcast_to(masks[:, None].numpy(), wanted.shape)
    np.testing.assert_allclose(found.numpy()[kept], wanted[kept], atol=1e-3)


@pytest.mark.parametrize(("height", "width"), [(21, 21), (20, 20), (16, 30)])
@pytest.mark.parametrize("degrees", [17.0, -60.0, 133.0])
def test_free_rotations_are_those_of_scipy(degrees, height, width):
    pixels, valid = images(2, height, width)
    pixels, valid = pixels.float(), torch.ones_like(valid)
    found, masks = resampled(pixels, valid, torch.full((2,), degrees), torch.ones(2), torch.zeros(2, 2))
    wanted = scipy.ndimage.rotate(pixels.numpy(), degrees, axes=(3, 2), reshape=False, order=1, mode="grid-constant")
    weight = scipy.ndimage.rotate(np.ones((height, width)), degrees, axes=(1, 0), reshape=False, order=1, mode="grid-constant")
    assert np.array_equal(masks[0].numpy(), weight >= 0.5)
    inside = np.broadcast_to(weight > 1 - 1e-9, wanted.shape)
    assert inside.mean() > 0.3
    np.testing.assert_allclose(found.numpy()[inside], wanted[inside], atol=0.01)


def test_a_crop_is_the_window_brought_to_the_size_of_the_image():
    """On a linear image the oracle is the line itself: bilinear interpolation is exact on it."""
    slopes = [(1.0, 0.0), (0.0, 1.0)]
    pixels = torch.from_numpy(linear(20, 32, slopes)).float()[None]
    scale, place = torch.tensor([0.36]), torch.tensor([[0.5, -1.0]])
    found, mask = resampled(pixels, torch.ones(1, 20, 32, dtype=torch.bool), torch.zeros(1), scale, place)
    assert mask.all()
    # side 0.6 of the image; its left edge three quarters of the way (0.4 x 32 x 0.75), its top edge at the top
    columns = 0.4 * 32 * 0.75 + 0.6 * (np.arange(32) + 0.5) - 0.5 - 15.5
    rows = 0.6 * (np.arange(20) + 0.5) - 0.5 - 9.5
    inner = slice(1, -1)
    np.testing.assert_allclose(found[0, 1, 3, inner], columns[inner], atol=1e-4)
    np.testing.assert_allclose(found[0, 0, inner, 5], rows[inner], atol=1e-4)


def test_a_crop_of_a_rotation_is_cut_from_the_rotated_image():
    slopes = [(1.0, 0.0), (0.0, 1.0)]
    pixels = torch.from_numpy(linear(40, 40, slopes)).float()[None]
    angle, side, place = 25.0, 0.5, (0.2, -0.1)
    found, mask = resampled(
        pixels, torch.ones(1, 40, 40, dtype=torch.bool), torch.tensor([angle]), torch.tensor([side**2]), torch.tensor([place])
    )
    assert mask.all()
    y, x = linear(40, 40, slopes)
    x, y = side * x + place[0] * (1 - side) * 20, side * y + place[1] * (1 - side) * 20
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    np.testing.assert_allclose(found[0, 1], cos * x - sin * y, atol=1e-3)
    np.testing.assert_allclose(found[0, 0], sin * x + cos * y, atol=1e-3)


@pytest.mark.parametrize("garbage", [1e9, float("nan"), float("inf")])
def test_invalid_pixels_never_leak(garbage):
    pixels = torch.full((8, BANDS, 16, 16), 7.0)
    valid = torch.rand((8, 16, 16), generator=torch.Generator().manual_seed(1)) > 0.3
    dirty = torch.where(valid[:, None], pixels, garbage)
    found, masks = changed(dirty, valid, rotate_degrees=180.0, crop_scale=[0.3, 1.0])
    assert 0.3 < masks.float().mean() < 0.9
    kept = masks[:, None].expand_as(found)
    torch.testing.assert_close(found[kept], torch.full_like(found[kept], 7.0))


def test_the_mask_moves_with_the_pixels():
    """A block is the only valid one and the only bright one; wherever it goes, both go together."""
    pixels, valid = torch.zeros(200, 1, 24, 24), torch.zeros(200, 24, 24, dtype=torch.bool)
    valid[:, 4:14, 2:10] = True
    pixels[:, :, 4:14, 2:10] = 5.0
    whole = torch.ones_like(valid)
    settings = {"symmetries": True, "rotate_degrees": 45.0, "crop_scale": [0.6, 1.0]}
    one_band = ([0.0], [1.0])
    found, _ = augment(pixels, whole, section(**settings), *one_band, draws(len(pixels), 3))
    _, masks = augment(pixels, valid, section(**settings), *one_band, draws(len(pixels), 3))
    away_from_half = (found[:, 0] - 2.5).abs() > 0.01
    assert torch.equal((found[:, 0] > 2.5)[away_from_half], masks[away_from_half])
    assert 0.5 < masks.float().mean() / valid.float().mean() < 2.5


def test_what_lies_outside_a_rotation_is_invalid():
    valid = torch.ones(1, 40, 40, dtype=torch.bool)
    _, masks = resampled(torch.zeros(1, 1, 40, 40), valid, torch.tensor([45.0]), torch.ones(1), torch.zeros(1, 2))
    rows, columns = np.mgrid[:40, :40] - 19.5
    outside = np.abs(rows) + np.abs(columns) - 20 * np.sqrt(2)  # a square turned by 45 degrees
    assert masks[0].numpy()[outside < -0.71].all()
    assert not masks[0].numpy()[outside > 0.71].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "values", [{"rotate_degrees": 10.0}, {"crop_scale": [0.5, 0.9]}, {"brightness": 0.1}, {"jitter": 0.1}, {"band_dropout": 0.5}], ids=str
)
def test_other_changes_give_float32_and_leave_what_they_were_given(dtype, values):
    pixels, valid = images(dtype=dtype)
    before = pixels.clone(), valid.clone()
    found, masks = changed(pixels, valid, symmetries=True, **values)
    assert (found.dtype, masks.dtype) == (torch.float32, torch.bool)
    assert (found.shape, masks.shape) == (pixels.shape, valid.shape)
    assert torch.equal(pixels.float(), before[0].float())
    assert torch.equal(valid, before[1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_the_same_seed_gives_the_same_changes_in_any_dtype(dtype):
    pixels, valid = images(dtype=dtype)
    once, again, other = (changed(pixels, valid, seed, symmetries=True, **EVERYTHING) for seed in (5, 5, 6))
    assert torch.equal(once[0], again[0])
    assert torch.equal(once[1], again[1])
    assert not torch.equal(once[0], other[0])
    reference = changed(pixels.to(torch.int32), valid, 5, symmetries=True, **EVERYTHING)
    assert torch.equal(once[0], reference[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_a_seed_gives_the_same_changes_on_every_device(dtype):
    pixels, valid = images(dtype=dtype)
    here, mask = changed(pixels, valid, 5, symmetries=True, **EVERYTHING)
    there, its_mask = changed(pixels.cuda(), valid.cuda(), 5, symmetries=True, **EVERYTHING)
    assert there.is_cuda
    assert torch.equal(its_mask.cpu(), mask)
    kept = mask[:, None].expand_as(here)
    torch.testing.assert_close(there.cpu()[kept], here[kept], atol=0.01, rtol=1e-4)


def test_recolouring_is_the_formula():
    pixels, _ = images(2)
    generator = torch.Generator().manual_seed(2)
    shift, gain = torch.randn(2, BANDS, generator=generator), torch.rand(2, BANDS, generator=generator)
    dropped = torch.tensor([[False, True, False], [False, False, True]])
    found = recoloured(pixels, shift, gain, dropped, MEAN, STD).numpy()
    for image in range(2):
        for band in range(BANDS):
            values, mean, std = pixels[image, band].double().numpy(), MEAN[band], STD[band]
            wanted = mean + (values - mean) * float(gain[image, band]) + float(shift[image, band]) * std
            np.testing.assert_allclose(found[image, band], np.full_like(values, mean) if dropped[image, band] else wanted, atol=2e-3)


def standardised(pixels):
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def two_levels(count):
    """Images whose standardised values are -1 and 1 in every band: their mean tells the shift, half their difference the contrast."""
    levels = torch.tensor(MEAN)[:, None] + torch.tensor(STD)[:, None] * torch.tensor([-1.0, 1.0])
    return levels[None, :, None, :].expand(count, BANDS, 1, 2), torch.ones(count, 1, 2, dtype=torch.bool)


def assert_uniform(draws, low, high):
    """Mean, deviation and ends of a uniform distribution, within 4.5 standard errors."""
    count, width = draws.size, high - low
    assert draws.min() >= low - 1e-3
    assert draws.max() <= high + 1e-3
    assert abs(draws.mean() - (low + high) / 2) < 4.5 * width / np.sqrt(12 * count)
    assert abs(draws.var() - width**2 / 12) < 4.5 * width**2 / np.sqrt(180 * count)


def test_brightness_shifts_all_bands_of_an_image_by_the_same_number_of_deviations():
    found = standardised(changed(*two_levels(3000), brightness=0.4)[0])
    shift, contrast = found.mean(dim=(2, 3)), (found[..., 0, 1] - found[..., 0, 0]) / 2
    torch.testing.assert_close(contrast, torch.ones_like(contrast), atol=1e-3, rtol=0)
    torch.testing.assert_close(shift, shift[:, :1].expand_as(shift), atol=1e-3, rtol=0)
    assert_uniform(shift[:, 0].numpy(), -0.4, 0.4)


def test_jitter_shifts_and_stretches_each_band_by_itself():
    found = standardised(changed(*two_levels(3000), jitter=0.2)[0])
    shift, contrast = found.mean(dim=(2, 3)).numpy(), ((found[..., 0, 1] - found[..., 0, 0]) / 2).numpy()
    for band in range(BANDS):
        assert_uniform(shift[:, band], -0.2, 0.2)
        assert_uniform(contrast[:, band], 0.8, 1.2)
    correlations = np.corrcoef(np.concatenate([shift, contrast], axis=1).T) - np.eye(2 * BANDS)
    assert np.abs(correlations).max() < 4.5 / np.sqrt(3000)


def test_dropped_bands_have_their_mean_and_one_always_stays():
    found = standardised(changed(*two_levels(4000), band_dropout=0.5)[0])
    gone = (found.abs() < 1e-3).all(dim=3).all(dim=2)
    assert torch.equal(found[~gone], standardised(two_levels(4000)[0])[~gone])
    assert not gone.all(dim=1).any()
    # each with probability 1/2, but where all three fall, which is one time in eight, one of them comes back
    probability = 0.5 - 0.5**3 / 3
    assert abs(gone.float().mean() - probability) < 4.5 * 0.5 / np.sqrt(4000)
    only = torch.ones(50, 1, 4, 4)
    kept, _ = augment(only, torch.ones(50, 4, 4, dtype=torch.bool), section(band_dropout=0.9), [0.0], [1.0], draws(50))
    assert torch.equal(kept, only)


def test_noise_is_gaussian_in_deviations_of_each_band_and_each_images_own():
    pixels = torch.full((40, BANDS, 30, 30), 50.0)
    found, _ = changed(pixels, torch.ones(40, 30, 30, dtype=torch.bool), noise=0.5)
    noise = (found - pixels).double() / torch.tensor(STD).double()[:, None, None]
    deviations = noise.flatten(1).std(dim=1)
    assert deviations.max() < 0.53
    assert deviations.max() - deviations.min() > 0.3, "from 0 to the greatest"
    for band in range(BANDS):
        torch.testing.assert_close(noise[:, band].flatten(1).std(dim=1), deviations, rtol=0.15, atol=0)
    standard = (noise / deviations[:, None, None, None]).flatten()
    assert abs(standard.mean()) < 0.01
    assert (standard.abs() < 1).double().mean().item() == pytest.approx(0.6827, abs=0.01)
    assert not torch.allclose(noise[0] / deviations[0], noise[1] / deviations[1])


def test_rotations_and_crops_fill_their_ranges():
    """The image is its own coordinates, so that each window tells from where it was cut."""
    size, count = 64, 1500
    pixels = torch.from_numpy(linear(size, size, [(1.0, 0.0), (0.0, 1.0)])).float().expand(count, 2, size, size)
    settings = section(rotate_degrees=20.0, crop_scale=[0.2, 0.4])
    found, masks = augment(pixels, torch.ones(count, size, size, dtype=torch.bool), settings, [0, 0], [1, 1], draws(count, 8))
    middle = found[:, :, 30:34, 30:34].numpy()
    assert masks[:, 30:34, 30:34].all()
    down, along = (middle[:, :, 3, 0] - middle[:, :, 0, 0]) / 3, (middle[:, :, 0, 3] - middle[:, :, 0, 0]) / 3
    assert_uniform(np.degrees(np.arctan2(along[:, 0], along[:, 1])), -20, 20)
    assert_uniform(down[:, 0] * along[:, 1] - down[:, 1] * along[:, 0], 0.2, 0.4)


@pytest.mark.parametrize(
    "values",
    [
        {"crop_scale": [0, 1]},
        {"crop_scale": [0.9, 0.5]},
        {"crop_scale": [0.5, 1.5]},
        {"crop_scale": 0.5},
        {"crop_scale": [0.5]},
        {"crop_scale": [0.5, 0.6, 0.7]},
        {"rotate_degrees": 200},
        {"brightness": -1},
        {"jitter": 1.5},
        {"band_dropout": 1},
    ],
    ids=str,
)
def test_what_no_augmentation_can_do_is_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        section(**values)


def test_the_section_lies_within_that_of_training():
    settings = config.build(TrainSection, {"augment": {"symmetries": False, "crop_scale": [0.5, 1]}})
    assert settings.augment == section(crop_scale=[0.5, 1.0])
    assert config.build(TrainSection, config.to_dict(settings)) == settings
    assert TrainSection().augment == AugmentSection()
    with pytest.raises(ConfigError, match=r"augment\.rotate_degrees"):
        config.build(TrainSection, {"augment": {"rotate_degree": 3}})


@pytest.mark.parametrize(
    "changes", [{"brightness": 1.0, "jitter": 0.5, "noise": 0.5, "band_dropout": 0.9}, {"rotate_degrees": 30.0, "crop_scale": (0.5, 0.9)}]
)
def test_maps_keep_their_codes_and_move_with_the_imagery(changes):
    rng = np.random.default_rng(3)
    codes = torch.from_numpy(rng.choice([1, 4, 9], (6, 1, 16, 16)).astype(np.uint8))
    pixels = torch.cat([codes * 20, codes], dim=1)
    draws = Draws(generator=torch.Generator().manual_seed(1), batch=6, share=slice(0, 6))
    section = AugmentSection(symmetries=True, **changes)
    found, valid = augment(pixels, torch.ones(6, 16, 16, dtype=torch.bool), section, (100.0, 3.0), (50.0, 2.0), draws, still=[1])
    kept = found[:, 1][valid]
    assert set(kept.unique().tolist()) <= {1.0, 4.0, 9.0}
    assert not set(found[:, 0][valid].unique().tolist()) <= {20.0, 80.0, 180.0}
    if "crop_scale" in changes:  # where nothing is blended, a map says what the imagery shows
        whole = torch.isin(found[:, 0], torch.tensor([20.0, 80.0, 180.0])) & valid
        assert (found[:, 0][whole] == 20 * found[:, 1][whole]).float().mean() > 0.9


def colours(count=3):
    """Colours far from grey; pixels of one image are equal."""
    return torch.tensor([[200.0, 40.0, 60.0], [10.0, 90.0, 200.0], [80.0, 80.0, 20.0]])[:count, :, None, None].expand(-1, -1, 2, 2)


def test_a_turn_of_a_third_exchanges_the_colours_and_none_changes_nothing():
    turned_by = tinted(colours(), torch.tensor([120.0, 0.0, -120.0]), torch.ones(3), [0, 1, 2])
    torch.testing.assert_close(turned_by[0], colours()[0].roll(1, 0), atol=1e-3, rtol=0)
    torch.testing.assert_close(turned_by[1], colours()[1], atol=1e-3, rtol=0)
    torch.testing.assert_close(turned_by[2], colours()[2].roll(-1, 0), atol=1e-3, rtol=0)


def test_saturation_moves_colours_along_their_distance_from_grey():
    found = tinted(colours(), torch.zeros(3), torch.tensor([0.0, 0.5, 2.0]), [0, 1, 2])
    grey = colours().mean(dim=1, keepdim=True)
    torch.testing.assert_close(found, grey + torch.tensor([0.0, 0.5, 2.0])[:, None, None, None] * (colours() - grey), atol=1e-3, rtol=0)


def test_colour_changes_leave_other_bands_and_the_mean_of_the_colours():
    pixels, valid = torch.rand(50, 5, 4, 4) * 100, torch.ones(50, 4, 4, dtype=torch.bool)
    given = section(saturation=0.6, hue_degrees=90)
    found, _ = augment(pixels, valid, given, [50.0] * 5, [20.0] * 5, draws(50), colours=[3, 0, 4])
    torch.testing.assert_close(found[:, [1, 2]], pixels[:, [1, 2]])
    torch.testing.assert_close(found[:, [3, 0, 4]].mean(dim=1), pixels[:, [3, 0, 4]].mean(dim=1), rtol=1e-4, atol=1e-3)
    assert ((found - pixels)[:, [0, 3, 4]].abs().amax(dim=(1, 2, 3)) > 0.1).all()


def test_greyscale_comes_with_its_probability():
    pixels, valid = colours(1).expand(2000, -1, -1, -1), torch.ones(2000, 2, 2, dtype=torch.bool)
    found, _ = changed(pixels, valid, symmetries=False, greyscale=0.2)
    grey = (found.amax(dim=1) - found.amin(dim=1)).amax(dim=(1, 2)) < 1e-3
    assert grey.float().mean().item() == pytest.approx(0.2, abs=0.03)
    torch.testing.assert_close(found[~grey], pixels[~grey])


def test_contrast_is_one_number_for_all_bands_of_an_image():
    pixels, valid = two_levels(500)
    found, _ = changed(pixels, valid, symmetries=False, contrast=0.5)
    gains = (standardised(found) / standardised(pixels)).flatten(2)
    torch.testing.assert_close(gains, gains[:, :1, :1].expand_as(gains), rtol=1e-3, atol=1e-3)
    assert_uniform(gains[:, 0, 0].numpy(), 0.5, 1.5)


@pytest.mark.parametrize("bands", [("nir", "red"), ("a", "b", "c", "d")])
def test_colours_that_are_not_told_are_asked_for(bands):
    assert section().colour_bands(bands) == []
    assert section(hue_degrees=5, colours=["b", "g", "r"]).colour_bands(["r", "g", "b", "nir"]) == [2, 1, 0]
    with pytest.raises(ConfigError, match=r"train\.augment\.colours"):
        section(greyscale=0.1).colour_bands(bands)
