"""Kinds of index, by key: what each costs and finds, and how to search it without trusting its file."""

from rayjobs.retrieval.kinds.codes import Hamming, HammingIvf, are_codes, least_cosine
from rayjobs.retrieval.kinds.graph import Hnsw
from rayjobs.retrieval.kinds.kind import LAST_BITS, Effort, Exact, Found, Kind, ranked, refuse_unless, sample_rows, selector_of
from rayjobs.retrieval.kinds.lists import IvfFlat, IvfPq, IvfRabitq, lists_for, sample_size
from rayjobs.retrieval.kinds.plain import Binary, Flat, Sq8, inner_products

STORES: dict[str, Exact] = {kind.name: kind for kind in (Flat(), Hamming())}
"""Kinds that keep the vectors themselves, by name; see `Kind.store`."""
KINDS: dict[str, Kind] = {
    **STORES,
    **{kind.name: kind for kind in (Hnsw(), IvfFlat(), IvfPq(), IvfRabitq(), Sq8(), Binary(), HammingIvf())},
}

__all__ = [
    "KINDS",
    "LAST_BITS",
    "STORES",
    "Effort",
    "Exact",
    "Found",
    "Hamming",
    "Kind",
    "are_codes",
    "inner_products",
    "least_cosine",
    "lists_for",
    "ranked",
    "refuse_unless",
    "sample_rows",
    "sample_size",
    "selector_of",
]
