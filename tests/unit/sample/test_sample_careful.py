"""Files that kill the process that reads them."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from rayjobs.errors import UnreadableTileError
from rayjobs.rasters.reader import RasterReader
from rayjobs.rasters.sources import discover
from rayjobs.sample import careful, read
from rayjobs.sample.careful import CarefulReader
from tests.unit.rasters.rasters_made import files, noise, write

POISON = f"""<VRTDataset rasterXSize="64" rasterYSize="64">
  <SRS>EPSG:32632</SRS><GeoTransform>600000, 10, 0, 5000000, 0, -10</GeoTransform>
  <VRTRasterBand dataType="Byte" band="1" subClass="VRTDerivedRasterBand">
    <PixelFunctionType>kill</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage>
    <PixelFunctionCode><![CDATA[
import os
def kill(*given, **named):
    os.kill(os.getpid(), {int(signal.SIGKILL)})
]]></PixelFunctionCode>
  </VRTRasterBand>
</VRTDataset>"""
"""A raster whose pixels are made by a Python function that ends the process."""


@pytest.fixture
def scenes(tmp_path, experiment, monkeypatch):
    monkeypatch.setenv("GDAL_VRT_ENABLE_PYTHON", "YES")
    write(tmp_path / "good.tif", noise(1, 64, 64, seed=1), origin=(500_000, 5_000_000))
    (tmp_path / "poison.vrt").write_text(POISON)
    source = files(str(tmp_path / "*.*"))
    return {scene.scene_id: scene for scene in discover(experiment(source).rasters).scenes}


def windows(count):
    return np.array([[0, 16 * number, 16, 16] for number in range(count)])


def test_a_good_file_is_read_as_always(scenes):
    with CarefulReader() as one, RasterReader() as other:
        for found, expected in zip(one.read_many(scenes["good"], windows(4)), other.read_many(scenes["good"], windows(4)), strict=True):
            np.testing.assert_array_equal(found.values, expected.values)
            np.testing.assert_array_equal(found.valid, expected.valid)
        [outside] = one.read_many(scenes["good"], np.array([[60, 0, 16, 16]]))
        assert "leaves scene good" in str(outside)


def test_a_poison_tile_is_left_out_after_two_tries(scenes, monkeypatch):
    started = []
    start = careful._started
    monkeypatch.setattr(careful, "_started", lambda: started.append(1) or start())
    with CarefulReader() as reader:
        answers = reader.read_many(scenes["poison"], windows(4))
        assert all(isinstance(answer, UnreadableTileError) for answer in answers)
        assert "poison.vrt" in str(answers[0])
        assert "killed 2 processes that read it (SIGKILL)" in str(answers[0])
        assert "killed 4 processes that read other tiles" in str(answers[3])
        assert len(started) == 4, "then it is known"
        assert reader.read_many(scenes["good"], windows(1))[0].values.shape == (1, 16, 16)


def test_a_shard_whose_reader_died_is_read_with_care(sample, tmp_path, monkeypatch):
    write(tmp_path / "good.tif", noise(1, 64, 64, seed=1), origin=(500_000, 5_000_000))
    made = []

    class Noted(CarefulReader):
        def __init__(self):
            made.append(1)
            super().__init__()

    monkeypatch.setattr(read, "CarefulReader", Noted)

    class Dies(RasterReader):
        def read_many(self, *_):
            raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(read, "RasterReader", Dies)
        with pytest.raises(KeyboardInterrupt):
            sample(files(tmp_path / "*.tif"))
    assert not made
    done = sample(files(tmp_path / "*.tif"))
    assert done.result.counts["kept"] == 16
    assert made
    assert not [key for key in done.artefact.store.list() if "begun" in key]
