"""What other tools read of an index: a STAC Collection, an Item per segment and an Item of the encoder, as JSON beside the manifest.

An Item per segment, and not per scene: an Item stands for files, a segment's files hold tiles of many scenes, and what is said of a segment
is the same in every version that takes it over, but for the Item's id, which names the version, and the time of publishing.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pystac
import shapely
from pystac.extensions.file import FileExtension
from pystac.extensions.mlm import InputStructure, MLMExtension, ModelInput, ModelOutput, ResultStructure, TaskType
from pystac.extensions.raster import DataType

from rayjobs.geo import polygon_of_box
from rayjobs.retrieval.kinds import KINDS
from rayjobs.tiles.section import GridSampler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rayjobs.models.spec import ModelSpec
    from rayjobs.retrieval.manifest import IndexManifest, SegmentEntry
    from rayjobs.storage import Draft, FileDigest
    from rayjobs.tiles.section import TilesSection

FOLDER = "stac"
"""Of the version's folder. Links are relative, so that a workspace may be copied elsewhere."""
EMB = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
"""The proposal `emb`: https://github.com/geo-embeddings/embeddings-stac-specification."""


class _Stored(NamedTuple):
    """How the vectors of a segment are told of."""

    header_bytes: int
    """Bytes of the file before the first vector."""
    data_type: str
    quantisation: str
    layout: str
    """What comes after the header, of `rows` vectors of `dim` numbers."""


_JSON, _GEOJSON, _BINARY = "application/json", "application/geo+json", "application/octet-stream"
_MULTIHASH_SHA256 = "1220"
_STORED = {
    "flat": _Stored(
        header_bytes=45,
        data_type="float32",
        quantisation="none",
        layout="FAISS IndexFlatIP: after file:header_size bytes, {rows} x {dim} float32, little-endian, row by row, each of length 1",
    ),
    "hamming": _Stored(
        header_bytes=33,
        data_type="uint8",
        quantisation="binary",
        layout=(
            "FAISS IndexBinaryFlat: after file:header_size bytes, {rows} codes of {dim} bits, row by row, each filled up to whole bytes; "
            "the first number is the highest bit of the first byte, and a bit of 1 stands for +1/sqrt({dim}), one of 0 for -1/sqrt({dim})"
        ),
    ),
}
"""By what keeps the vectors. FAISS's headers: type, dimension, count, what training left, metric, and the number of values."""
_WORKSPACE = "../../../../"
"""From a version's STAC folder."""
_WHOLE_GLOBE = (-180.0, -90.0, 180.0, 90.0)
_FIT_FOR = ["retrieval", "similarity_search"]


def documents(draft: Draft, manifest: IndexManifest, spec: ModelSpec, parents: Mapping[str, Any], tiles: TilesSection) -> dict[str, bytes]:
    """Return the STAC files of a version by name.

    Args:
        draft: the version, with its segments and its encoder counted in.
        manifest: what it says of itself.
        spec: what its encoder is.
        parents: the `set` and the `embeddings` that it was made of, both NAME/VERSION.
        tiles: how the tiles of the set were chosen.
    """
    written = _Written(draft, manifest, spec)
    found: dict[str, pystac.Collection | pystac.Item] = {"collection": written.collection(parents, tiles), "encoder": written.encoder()}
    found |= {entry.name: written.segment(entry) for entry in manifest.segments}
    return {f"{FOLDER}/{name}.json": _json(entry) for name, entry in found.items()}


def _json(entry: pystac.Collection | pystac.Item) -> bytes:
    return json.dumps(entry.to_dict(include_self_link=False, transform_hrefs=False), indent=1).encode()


def chip_layout(tiles: TilesSection) -> dict[str, Any]:
    """Return how tiles were chosen, in the words of `emb`: windows of a scene's own grid."""
    size = {} if tiles.size is None else {"chip_size": [tiles.size, tiles.size]}
    if isinstance(tiles.sampler, GridSampler) and tiles.size is not None:
        stride = tiles.sampler.step(tiles.size)
        return {"layout_type": "regular_grid", **size, "stride": [stride, stride]}
    return {"layout_type": "variable_grid", **size}


class _Written:
    """The STAC objects of one version."""

    def __init__(self, draft: Draft, manifest: IndexManifest, spec: ModelSpec) -> None:
        self._name, self._version = draft.artefact.name, draft.version
        self._files = {entry.name: entry for entry in draft.files}
        self._manifest, self._spec = manifest, spec
        self._stored = _STORED[KINDS[manifest.kind].store]
        self._now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)

    def collection(self, parents: Mapping[str, Any], tiles: TilesSection) -> pystac.Collection:
        """Return the whole index."""
        manifest, spec = self._manifest, self._spec
        first, last = (None, None) if manifest.dates is None else map(_instant, manifest.dates)
        made = pystac.Collection(
            id=f"{self._name}-{self._version}",
            title=f"Embeddings of tiles: {self._name}",
            description=_OF_INDEX.format(
                rows=manifest.stored - manifest.deleted, dim=spec.dim, kind=manifest.kind, deleted=manifest.deleted
            ),
            license="other",
            extent=pystac.Extent(pystac.SpatialExtent([list(manifest.bounds or _WHOLE_GLOBE)]), pystac.TemporalExtent([[first, last]])),
            extra_fields={
                "emb:type": "chip",
                "emb:dimensions": spec.dim,
                "data_type": self._stored.data_type,
                "emb:chip_layout": chip_layout(tiles),
                "emb:temporal_resolution": "single_acquisition",
                "emb:fit_for_use": _FIT_FOR,
                **({} if spec.resolution_m is None else {"gsd": spec.resolution_m}),
            },
        )
        made.stac_extensions.append(EMB)
        made.clear_links()
        made.add_link(pystac.Link("root", "./collection.json", _JSON))
        made.add_link(pystac.Link("emb:model", "./encoder.json", _GEOJSON, "the encoder"))
        made.add_link(
            pystac.Link("emb:source-data", f"{_WORKSPACE}sets/{parents['set']}/scenes.parquet", title="scenes of the tiles (Parquet)")
        )
        table = f"{_WORKSPACE}embeddings/{parents['embeddings']}/manifest.json"
        made.add_link(pystac.Link("via", table, _JSON, "table of the vectors added last (GeoParquet)"))
        made.add_links([pystac.Link("item", f"./{entry.name}.json", _GEOJSON) for entry in manifest.segments])
        made.add_asset("manifest", pystac.Asset("../manifest.json", media_type=_JSON, roles=["metadata"]))
        return made

    def segment(self, entry: SegmentEntry) -> pystac.Item:
        """Return a segment: its vectors, what is known of each, and the compressed index of them."""
        item = self._item(entry.name, entry.bounds, entry.dates)
        item.properties |= {
            "emb:runtime_parameters": {
                "bands": list(self._spec.bands),
                "chip_size": self._spec.tile_size,
                "encoder_fingerprint": self._manifest.encoder_fingerprint,
            },
            "emb:quantization": {"method": self._stored.quantisation, "original_dtype": "float32"},
            "emb:postprocessing": {"format": "numpy", "expression": "vector / numpy.linalg.norm(vector)"},
            "emb:fit_for_use": _FIT_FOR,
        }
        item.stac_extensions.append(EMB)
        vectors = self._files[f"{entry.name}.vectors"]
        layout = self._stored.layout.format(rows=entry.rows, dim=self._spec.dim)
        item.add_asset("embeddings", self._asset(vectors, _BINARY, "data", layout))
        FileExtension.ext(item.assets["embeddings"]).header_size = self._stored.header_bytes
        metadata = self._files[f"{entry.name}.parquet"]
        item.add_asset("tiles", self._asset(metadata, pystac.MediaType.PARQUET, "metadata", "GeoParquet: row i is the tile of vector i"))
        if index := self._files.get(f"{entry.name}.faiss"):
            item.add_asset("index", self._asset(index, _BINARY, "index", f"FAISS index of kind {self._manifest.kind} over these vectors"))
        return item

    def encoder(self) -> pystac.Item:
        """Return the encoder, by the Machine Learning Model extension (MLM)."""
        spec = self._spec
        item = self._item("encoder", None, None)
        extension = MLMExtension.ext(item, add_if_missing=True)
        extension.apply(
            name=f"encoder-{self._manifest.encoder_fingerprint[:12]}",
            architecture=spec.backbone or "statistics of bands",
            tasks=[TaskType.SIMILARITY_SEARCH],
            input=[_input(spec)],
            output=[_output(spec)],
            framework="PyTorch",
            framework_version=importlib.metadata.version("torch"),
            memory_size=self._files["encoder/model.safetensors"].size,
        )
        item.properties["rayjobs:encoder_fingerprint"] = self._manifest.encoder_fingerprint
        weights = self._asset(self._files["encoder/model.safetensors"], _BINARY, "mlm:model", "weights, safetensors")
        weights.extra_fields["mlm:artifact_type"] = "safetensors"
        item.add_asset("weights", weights)
        item.add_asset("architecture", self._asset(self._files["encoder/model.json"], _JSON, "metadata", "everything but the weights"))
        return item

    def _item(self, name: str, bounds: tuple[float, ...] | None, dates: tuple[str, str] | None) -> pystac.Item:
        """Return an Item of this version; where no tile has a datetime, it bears that of publishing, since STAC wants one."""
        first, last = (None, None) if dates is None else map(_instant, dates)
        item = pystac.Item(
            id=f"{self._name}-{self._version}-{name}",
            geometry=None if bounds is None else shapely.geometry.mapping(polygon_of_box(*bounds)),
            bbox=None if bounds is None else list(bounds),
            datetime=self._now if first is None else None,
            start_datetime=first,
            end_datetime=last,
            properties={"created": self._now.isoformat(), "rayjobs:dated": dates is not None},
        )
        FileExtension.add_to(item)
        item.collection_id = f"{self._name}-{self._version}"
        item.clear_links()
        item.add_links([pystac.Link(rel, "./collection.json", _JSON) for rel in ("root", "parent", "collection")])
        return item

    def _asset(self, entry: FileDigest, media_type: str, role: str, description: str) -> pystac.Asset:
        fields = {"file:size": entry.size, "file:checksum": _MULTIHASH_SHA256 + entry.sha256}
        return pystac.Asset(f"../{entry.location}", description=description, media_type=media_type, roles=[role], extra_fields=fields)


_OF_INDEX = (
    "{rows:,} tiles, each a vector of {dim} numbers of length 1, compared by cosine, and a search index of kind {kind}. "
    "{deleted:,} further tiles are deleted: tombstones.parquet has their ids."
)


def _instant(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def _input(spec: ModelSpec) -> ModelInput:
    shape = InputStructure.create(
        [-1, len(spec.bands), spec.input_size, spec.input_size], ["batch", "bands", "height", "width"], DataType.FLOAT32
    )
    made = ModelInput.create(
        name="tile",
        bands=list(spec.bands),
        input=shape,
        description=f"windows of {spec.tile_size} x {spec.tile_size} px, resized bilinearly; invalid pixels take the mean of their band",
    )
    # a list, one entry for each band, as the specification of MLM 1.4 has it; the class knows only one for all
    made.properties["value_scaling"] = [
        {"type": "z-score", "mean": mean, "stddev": std} for mean, std in zip(spec.mean, spec.std, strict=True)
    ]
    return made


def _output(spec: ModelSpec) -> ModelOutput:
    return ModelOutput.create(
        name="embedding",
        tasks=[TaskType.SIMILARITY_SEARCH],
        result=ResultStructure.create([-1, spec.dim], ["batch", "embedding"], DataType.FLOAT32),
        description=f"compared by {spec.distance}",
    )
