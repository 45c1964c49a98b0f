from __future__ import annotations

import io
import warnings

import numpy as np
import PIL.Image
import pytest

from rayjobs.evaluate.projector import projector, scalars

text_format = pytest.importorskip("google.protobuf.text_format")


def config(files):
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    return text_format.Parse(files["projector_config.pbtxt"].decode(), ProjectorConfig())


def put(files, folder):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_what_tensorboard_is_told_lies_where_it_is_told(tmp_path):
    rng = np.random.default_rng(0)
    embeddings = {"trained": rng.normal(size=(10, 4)).astype(np.float32), 'image "statistics"': rng.normal(size=(10, 3))}
    tiles = rng.integers(0, 255, (10, 20, 20, 3), np.uint8)
    files = projector(embeddings, {"class": ["a"] * 10, "tile": range(10)}, tiles)
    put(files, tmp_path)
    found = config(files)
    assert [info.tensor_name for info in found.embeddings] == list(embeddings)
    for info, vectors in zip(found.embeddings, embeddings.values(), strict=True):
        assert np.loadtxt(tmp_path / info.tensor_path, delimiter="\t", ndmin=2) == pytest.approx(vectors, rel=1e-5)
        assert (tmp_path / info.metadata_path).read_text().splitlines()[:2] == ["class\ttile", "a\t0"]
        assert (tmp_path / info.sprite.image_path).exists()


def test_the_sprite_holds_each_tile_at_its_place():
    colours = np.random.default_rng(1).integers(0, 255, (7, 3), np.uint8)
    tiles = np.broadcast_to(colours[:, None, None], (7, 5, 9, 3))
    files = projector({"trained": np.zeros((7, 2))}, {"class": list("abcdefg")}, np.ascontiguousarray(tiles))
    width, height = config(files).embeddings[0].sprite.single_image_dim
    with PIL.Image.open(io.BytesIO(files["sprite.png"])) as image:
        sheet = np.asarray(image)
    assert sheet.shape == (3 * height, 3 * width, 3)
    for number, colour in enumerate(colours):
        row, column = divmod(number, 3)
        assert (sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] == colour).all()


def test_the_sprite_of_many_tiles_stays_within_what_browsers_take():
    tiles = np.zeros((5000, 2, 2, 3), np.uint8)
    files = projector({"trained": np.zeros((5000, 1))}, {"class": ["a"] * 5000}, tiles)
    with PIL.Image.open(io.BytesIO(files["sprite.png"])) as image:
        assert max(image.size) <= 4096


def test_one_column_has_no_heading_and_hostile_names_keep_to_their_cell():
    lines = projector({"trained": np.zeros((2, 2))}, {"class": ["a\tb\nc", ""]})["metadata.tsv"].decode()
    assert lines == "a b c\n-\n"


def test_without_columns_and_thumbnails_only_the_vectors_are_written():
    assert set(projector({"trained": np.zeros((2, 2))}, {})) == {"0/tensors.tsv", "projector_config.pbtxt"}


def test_a_column_that_lacks_tiles_is_refused():
    with pytest.raises(ValueError, match="zip"):
        projector({"trained": np.zeros((2, 2))}, {"class": ["a", "b"], "tile": ["1"]})


def test_tensorboard_reads_the_scalars_back(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the library warns of is not ours
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    series = {"train/loss": [(0, 1.5), (1, 0.75)], "mine/negatives": [(1, 12000.0)]}
    files = scalars(series)
    put(files, tmp_path)
    found = EventAccumulator(str(tmp_path)).Reload()
    assert set(found.Tags()["scalars"]) == set(series)
    for name, points in series.items():
        assert [(event.step, event.value) for event in found.Scalars(name)] == points


def test_the_event_file_does_not_name_the_machine(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "secret-host")
    (name, data), *others = scalars({"loss": [(0, 1.0)]}).items()
    assert not others
    assert "tfevents" in name
    assert "secret-host" not in name
    assert b"secret-host" not in data
