"""The mined table of real imagery: the same bytes from 1, 2 and 3 ranks, and equal to a loop over one pair of tiles at a time."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rayjobs.config import build
from rayjobs.experiment import Experiment
from rayjobs.models.encoder import build as build_encoder
from rayjobs.models.spec import ModelSpec
from rayjobs.tiles.table import geoparquet_bytes, plan_tiles, read_geoparquet
from rayjobs.train.ground import ground_of, supervise
from rayjobs.train.mine import mined_with
from rayjobs.train.shown import ChipCache
from tests.unit.rasters.rasters_made import files, found

SIZE, NEGATIVES, POSITIVES, DEPTH = 48, 5, 3, 150
MOST_SIMILAR, PER_SCENE = 0.97, 2
NAIP = r"(?P<scene>m_\d+_se_14_1_(?P<date>201[25]\d{4}))\.tif"
ZION = r"landsat_(?P<band>b\d)\.tif"
SUPERVISIONS = ("geography", "labels")
CASES = [*((supervision, "statistics") for supervision in SUPERVISIONS), ("labels", "tf_efficientnet_lite0")]


class Statistics(torch.nn.Module):
    """Mean, spread and extremes of each band, of length 1 but for rounding: so short numbers that all sums of products are exact."""

    def forward(self, pixels, _valid):
        flat = pixels.flatten(2)
        parts = [flat.mean(2), flat.std(2), flat.quantile(0.05, dim=2), flat.quantile(0.95, dim=2)]
        return torch.round(torch.nn.functional.normalize(torch.cat(parts, dim=1)) * 256) / 256


def encoder(name):
    """Exact statistics, or a network whose products are rounded as they come."""
    if name == "statistics":
        return Statistics()
    bands = ("a", "b", "c", "d")
    sizes = {"tile_size": SIZE // 3, "input_size": SIZE // 3, "resolution_m": None}
    spec = ModelSpec(backbone=name, dim=128, bands=bands, dtype="float32", mean=(0.0,) * 4, std=(1.0,) * 4, **sizes)
    return build_encoder(spec, 0)


def experiment(supervision):
    mining = {"negatives": NEGATIVES, "positives": POSITIVES, "max_candidates": DEPTH, "max_similarity": MOST_SIMILAR}
    raw = {
        "name": "x",
        "rasters": {"sources": [{"kind": "files", "uris": ["x.tif"]}]},
        "tiles": {
            "size": SIZE,
            "sampler": {"kind": "grid", "stride": 40},
            "min_neg_dist": 3.0,
            "splits": {"train": 1, "val": 0, "test": 0},
        },
        "mining": mining | {"beyond_positives": True, "max_per_scene": PER_SCENE},
        "train": {"supervision": supervision},
    }
    return build(Experiment, raw)


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """Tiles of two dates of NAIP and of Zion, with chips in the spread of their imagery, and classes by how bright the last band is."""
    scenes = [*found(files(data("naip_nd"), pattern=NAIP)).scenes, *found(files(data("zion_north"), pattern=ZION)).scenes]
    tiles = plan_tiles(scenes, experiment("geography").tiles)
    images = {scene.scene_id: standardised(scene) for scene in scenes}
    chips = np.stack(
        [
            images[row["scene_id"]][:, row["row"] : row["row"] + SIZE : 3, row["col"] : row["col"] + SIZE : 3]
            for row in tiles.select(["scene_id", "row", "col"]).to_pylist()
        ]
    )
    bright = np.digitize(chips[:, 3].mean(axis=(1, 2)), [-0.5, 0.5])
    labels = pa.array([("dark", "middle", None)[number] for number in bright], pa.string())
    place = tiles.schema.get_field_index("label")
    root = tmp_path_factory.mktemp("real")
    (root / "tiles.parquet").write_bytes(geoparquet_bytes(tiles.set_column(place, tiles.schema.field(place), labels)))
    np.save(root / "chips.npy", chips)
    return root


def standardised(scene):
    import rasterio

    bands = []
    for asset in scene.assets.values():
        with rasterio.open(asset.uri) as file:
            bands.append(file.read(asset.band_index).astype(np.float32))
    image = np.stack(bands)
    return (image - image.mean(axis=(1, 2), keepdims=True)) / image.std(axis=(1, 2), keepdims=True)


def table_bytes(folder, supervision, network="statistics"):
    settings = experiment(supervision)
    ground = ground_of(read_geoparquet(Path(folder, "tiles.parquet").read_bytes()), settings)
    pixels = np.load(f"{folder}/chips.npy")
    chips = ChipCache(pixels=pixels, valid=np.ones((len(pixels), *pixels.shape[2:]), bool))
    mined, _ = mined_with(settings, ground, supervise(settings, ground), encoder(network), chips, torch.device("cpu"))
    return mined.parquet(ground.tile_ids), mined.refused


def mine_on(rank, folder):
    """Mine in a group of three, and then in one of two, each rank on threads of its own number; each for itself notes what it has."""
    torch.set_num_threads(rank + 1)
    for ranks in (3, 2):
        if rank < ranks:
            dist.init_process_group("gloo", init_method=f"file://{folder}/meet{ranks}", rank=rank, world_size=ranks)
            for case in CASES:
                data, refused = table_bytes(folder, *case)
                name = f"{folder}/{'-'.join(case)}-{ranks}-{rank}.npz"
                np.savez(name, data=np.frombuffer(data, np.uint8), refused=list(refused.values()))
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(folder):
    mp.spawn(mine_on, args=(str(folder),), nprocs=3)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_ranks_and_threads_mines_the_same_bytes(together, case):
    alone, refused = table_bytes(together, *case)
    assert len(pq.read_table(io.BytesIO(alone))) > 1000
    for ranks in (2, 3):
        for rank in range(ranks):
            with np.load(together / f"{'-'.join(case)}-{ranks}-{rank}.npz") as done:
                assert done["data"].tobytes() == alone, (ranks, rank)
                assert done["refused"].tolist() == list(refused.values())


class Naive:
    """The rules for one pair of tiles at a time, in float64."""

    def __init__(self, folder, supervision):
        table = read_geoparquet((folder / "tiles.parquet").read_bytes())
        self.ground = ground_of(table, experiment(supervision))
        self.rows = table.select(["tile_id", "place_id", "scene_id", "label"]).to_pylist()
        pixels = torch.from_numpy(np.load(folder / "chips.npy"))
        vectors = torch.cat([Statistics()(part, None) for part in pixels.split(128)]).double().numpy()
        self.similar = vectors @ vectors.T
        self.by_label = supervision == "labels"
        positions, sizes = self.ground.positions, self.ground.sizes
        self.apart = np.sqrt(((positions[:, None] - positions) ** 2).sum(axis=2))
        self.in_sizes = self.apart / np.maximum(sizes[:, None], sizes)
        self.anchors = [number for number in range(len(self.rows)) if self.alike(number)]
        self.refused = dict.fromkeys(["place", "overlap", "distance", "label", "max_similarity", "beyond_positives", "max_per_scene"], 0)

    def alike(self, anchor):
        count, label = len(self.rows), self.rows[anchor]["label"]
        if self.by_label:
            every = [other for other in range(count) if label is not None and self.rows[other]["label"] == label and other != anchor]
        else:
            every = [other for other in range(count) if self.in_sizes[anchor, other] <= 1.5 and other != anchor]
        return sorted(every, key=lambda other: (other - anchor) % count)[:DEPTH]

    def refuser(self, anchor, candidate, ceiling, chosen):
        one, other = self.rows[anchor], self.rows[candidate]
        rules = {
            "place": one["place_id"] == other["place_id"],
            "overlap": self.apart[anchor, candidate] < self.ground.reaches[anchor] + self.ground.reaches[candidate],
            "distance": self.in_sizes[anchor, candidate] < 3.0,
            "label": self.by_label and one["label"] is not None and one["label"] == other["label"],
            "max_similarity": self.similar[anchor, candidate] > MOST_SIMILAR,
            "beyond_positives": self.similar[anchor, candidate] > ceiling,
            "max_per_scene": sum(self.rows[given]["scene_id"] == other["scene_id"] for given in chosen) >= PER_SCENE,
        }
        return next((name for name, no in rules.items() if no), None)

    def negatives(self, anchor):
        ceiling = max((self.similar[anchor, other] for other in self.alike(anchor)), default=np.inf)
        order = np.lexsort((np.arange(len(self.rows)), -self.similar[anchor]))
        chosen = []
        for candidate in order[(order != anchor) & np.isin(order, self.anchors)][:DEPTH].tolist():
            if len(chosen) == NEGATIVES:
                break
            name = self.refuser(anchor, candidate, ceiling, chosen)
            if name is None:
                chosen.append(candidate)
            else:
                self.refused[name] += 1
        return chosen

    def positives(self, anchor):
        return sorted(self.alike(anchor), key=lambda other: (self.similar[anchor, other], other))[:POSITIVES]


@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_the_table_is_that_of_a_loop_over_pairs(folder, supervision):
    data, refused = table_bytes(folder, supervision)
    naive = Naive(folder, supervision)
    wanted = [
        (naive.rows[anchor]["tile_id"], naive.rows[other]["tile_id"], kind, rank, float(naive.similar[anchor, other]))
        for kind, chosen in (("negative", naive.negatives), ("positive", naive.positives))
        for anchor in naive.anchors
        for rank, other in enumerate(chosen(anchor), 1)
    ]
    assert [tuple(row.values()) for row in pq.read_table(io.BytesIO(data)).to_pylist()] == wanted
    assert refused == {name: count for name, count in naive.refused.items() if name != "label" or supervision == "labels"}
    assert min(refused.values()) > 20, "every guard had something to do"
    assert len(naive.anchors) < len(naive.rows) or supervision == "geography", "some tiles have none alike"
    assert {row["scene_id"] for row in naive.rows} == {"zion_north", "m_4709963_se_14_1_20120731", "m_4709963_se_14_1_20150926"}
