"""The embedding and the training curves as TensorBoard reads them: `tensorboard --logdir FOLDER`. Knows no Ray and no storage."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]
    Images = np.ndarray[Any, np.dtype[np.uint8]]

_SPRITE = 4096
"""Longest side of the picture that holds all thumbnails; above 8192 pixels browsers refuse it."""
_THUMBNAIL = 48
_EVENTS = "events.out.tfevents.rayjobs"


def projector(
    embeddings: Mapping[str, FloatArray], columns: Mapping[str, Sequence[object]], thumbnails: Images | None = None
) -> dict[str, bytes]:
    """Return the files of TensorBoard's projector.

    Args:
        embeddings: (tiles, dim) by name of the row; TensorBoard offers them by name.
        columns: (tiles,) what is known of each tile, by name: its class, its id. TensorBoard colours by columns of up to 50 values.
        thumbnails: (tiles, height, width, 3) uint8, or None.

    Returns:
        Content by path: `projector_config.pbtxt`, `metadata.tsv`, `sprite.png`, and `<number>/tensors.tsv` for each row.
    """
    from google.protobuf import text_format  # noqa: PLC0415  only what writes for TensorBoard needs it
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig  # noqa: PLC0415  likewise

    files = {"metadata.tsv": _metadata(columns)} if columns else {}
    side = 0
    if thumbnails is not None and len(thumbnails):
        files["sprite.png"], side = _sprite(thumbnails)
    config = ProjectorConfig()
    for number, (name, vectors) in enumerate(embeddings.items()):
        files[f"{number}/tensors.tsv"] = _tensors(vectors)
        info = config.embeddings.add(tensor_name=_cell(name), tensor_path=f"{number}/tensors.tsv")
        info.metadata_path = "metadata.tsv" if columns else ""
        if side:
            info.sprite.image_path = "sprite.png"
            info.sprite.single_image_dim.extend([side, side])
    return {**files, "projector_config.pbtxt": text_format.MessageToString(config).encode()}


def scalars(series: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, bytes]:
    """Return an event file of scalars, such as training curves.

    Args:
        series: (step, value) by metric; TensorBoard groups metrics by what stands before a slash.

    Returns:
        Content by path: one file, without the name of the machine that the library would give it.
    """
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  takes seconds to import

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for name, points in series.items():
                for step, value in points:
                    writer.add_scalar(name, value, step)
        (written,) = Path(folder).iterdir()
        return {_EVENTS: written.read_bytes()}


def _tensors(vectors: FloatArray) -> bytes:
    text = io.StringIO()
    np.savetxt(text, np.asarray(vectors, np.float32), fmt="%.6g", delimiter="\t")
    return text.getvalue().encode()


def _metadata(columns: Mapping[str, Sequence[object]]) -> bytes:
    """Write a line per tile; the names of the columns stand above them where there are several, as TensorBoard wants it."""
    lines = [columns] if len(columns) > 1 else []
    rows = zip(*columns.values(), strict=True)
    return "".join("\t".join(_cell(value) for value in line) + "\n" for line in [*lines, *rows]).encode()


def _cell(value: object) -> str:
    """Return a value without tabs and ends of lines, which would shift all that follows."""
    return " ".join(str(value).split()) or "-"


def _sprite(thumbnails: Images) -> tuple[bytes, int]:
    """Return all thumbnails in one square picture, row by row, and the side of each in pixels."""
    columns = int(np.ceil(np.sqrt(len(thumbnails))))
    side = max(1, min(_THUMBNAIL, _SPRITE // columns))
    sheet = PIL.Image.new("RGB", (columns * side, columns * side))
    for number, thumbnail in enumerate(thumbnails):
        small = PIL.Image.fromarray(thumbnail).resize((side, side), PIL.Image.Resampling.BOX)
        sheet.paste(small, (number % columns * side, number // columns * side))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue(), side
