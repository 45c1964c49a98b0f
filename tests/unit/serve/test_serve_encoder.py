"""The encoder deployment without Ray: encoders of two versions side by side, and the trial of a version."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from rayjobs.errors import FingerprintError
from rayjobs.models import encoder as networks
from rayjobs.models.checkpoint import from_files, to_files
from rayjobs.models.spec import ModelSpec
from rayjobs.serve import encoder
from rayjobs.serve.section import ServiceSection
from rayjobs.serve.settings import AppSettings
from rayjobs.serve.trial import compare
from rayjobs.storage import Artefact, open_store
from rayjobs.tiles.chips import Chip

SPEC = ModelSpec(
    backbone="resnet10t", dim=4, bands=("red", "green", "blue"), dtype="uint8", mean=(99.0,) * 3, std=(50.0,) * 3,
    tile_size=8, input_size=32, resolution_m=10.0,
)  # fmt: skip
RANDOM = np.random.default_rng(5)
CHIPS = [
    Chip(tile_id=f"{number:020x}", pixels=RANDOM.integers(0, 255, (3, 8, 8), dtype=np.uint8), valid=np.ones((8, 8), bool))
    for number in range(6)
]
IMAGES = [(chip.pixels, chip.valid) for chip in CHIPS]


def loaded(version, seed):
    files = to_files(networks.build(SPEC, seed=seed), SPEC)
    return encoder.LoadedEncoder(from_files(files["model.json"], files["model.safetensors"]), version)


class Answers:
    """An index version whose vectors the encoder of its seed made."""

    def __init__(self, version, seed):
        self.version, self.vectors = version, loaded(version, seed).embed(IMAGES)

    def stored(self, most):
        return CHIPS[:most], self.vectors[:most]


def test_an_index_is_served_only_by_the_encoder_that_made_it():
    embed = loaded("v1", seed=1).embed
    compare(Answers("v1", seed=1), embed, 4)
    with pytest.raises(FingerprintError, match=r"index v2: tile 0000\d+ embedded anew has cosine -?0\.\d+ .* `rayjobs index`"):
        compare(Answers("v2", seed=2), embed, 4)


def test_one_tile_that_differs_is_enough():
    made = Answers("v1", seed=1)
    made.vectors[3] = -made.vectors[3]
    with pytest.raises(FingerprintError, match=f"tile {CHIPS[3].tile_id}"):
        compare(made, loaded("v1", seed=1).embed, 6)


@pytest.mark.parametrize(("flipped", "passes"), [(0, True), (3, True), (4, False), (32, False)])
def test_of_codes_one_bit_in_twenty_may_differ(flipped, passes):
    """A number that is nearly 0 before its sign is taken has another sign on another device."""
    made = Answers("v1", seed=1)
    made.vectors = np.where(RANDOM.random((6, 64)) < 0.5, np.float32(0.125), np.float32(-0.125))
    anew = made.vectors.copy()
    anew[2, :flipped] *= -1
    if passes:
        compare(made, lambda _: anew, 6)
    else:
        with pytest.raises(FingerprintError, match=f"tile {CHIPS[2].tile_id}"):
            compare(made, lambda _: anew, 6)


def test_vectors_that_are_no_numbers_do_not_pass():
    made = Answers("v1", seed=1)
    made.vectors[0] = np.nan
    with pytest.raises(FingerprintError):
        compare(made, loaded("v1", seed=1).embed, 6)


def test_the_comparison_may_be_left_out():
    compare(Answers("v2", seed=2), loaded("v1", seed=1).embed, 0)


class OneByOne:
    """In place of Ray Serve's batching, which leaves an event loop behind."""

    def set_max_batch_size(self, size):
        assert size == 16

    async def __call__(self, asked):
        return (await encoder.embed_together([asked]))[0]


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setattr(encoder.Encoder, "_embed", OneByOne())
    store = open_store(f"file:{tmp_path}")
    for version, seed in (("v1", 1), ("v2", 2), ("mixed", 1)):
        draft = Artefact(store, "indexes", "places").draft(version)
        for name, data in to_files(networks.build(SPEC, seed=seed), SPEC).items():
            draft.write(f"encoder/{name}", data)
        draft.publish({"parents": {}, "counts": {}})

    def answers(settings, version, _):
        return Answers(settings.at(version).version, 2 if version != "v1" else 1)

    monkeypatch.setattr(encoder, "open_answers", answers)
    return AppSettings(workspace=store.uri, index="places", service=ServiceSection(check_tiles=3))


def test_images_of_two_encoders_come_back_in_their_order():
    first, second = loaded("v1", 1), loaded("v2", 2)
    asked = list(zip([first, second, first, second], IMAGES, strict=False))
    embedded = asyncio.run(encoder.embed_together(asked))
    for (wanted, image), found in zip(asked, embedded, strict=True):
        np.testing.assert_allclose(found, wanted.embed([image])[0], rtol=1e-4, atol=1e-6)


def test_each_image_is_embedded_by_the_encoder_of_its_version(settings):
    async def asked():
        deployment = encoder.Encoder(settings)
        await deployment.reconfigure({"index_version": "v1"})
        return await asyncio.gather(*(deployment.embed(*IMAGES[0], version) for version in ("v1", "v2", "v1")))

    first, second, third = asyncio.run(asked())
    np.testing.assert_allclose(first, loaded("v1", 1).embed(IMAGES[:1])[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(second, loaded("v2", 2).embed(IMAGES[:1])[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(first, third)


def test_a_version_is_tried_before_it_is_served(settings):
    async def tried():
        deployment = encoder.Encoder(settings)
        refusals = [await deployment.refusal(version) for version in ("v1", "v2", "mixed", "absent")]
        assert deployment._held.versions == []
        return refusals

    sound, other, mixed, absent = asyncio.run(tried())
    assert (sound, other) == (None, None)
    assert "do not belong together" in mixed
    assert "absent" in absent


def test_an_encoder_that_does_not_fit_its_index_does_not_start(settings):
    async def started():
        await encoder.Encoder(settings).reconfigure({"index_version": "mixed"})

    with pytest.raises(FingerprintError):
        asyncio.run(started())
