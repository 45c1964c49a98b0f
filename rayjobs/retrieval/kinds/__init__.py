"""Kinds of index, by key: what each costs and finds, and how to search it without trusting its file."""

from rayjobs.retrieval.kinds.graph import Hnsw
from rayjobs.retrieval.kinds.kind import Effort, Kind, refuse_unless, sample_rows
from rayjobs.retrieval.kinds.lists import IvfFlat, IvfPq, IvfRabitq, lists_for, sample_size
from rayjobs.retrieval.kinds.plain import LAST_BITS, Binary, Flat, Sq8, inner_products

KINDS: dict[str, Kind] = {kind.name: kind for kind in (Flat(), Hnsw(), IvfFlat(), IvfPq(), IvfRabitq(), Sq8(), Binary())}

__all__ = ["KINDS", "LAST_BITS", "Effort", "Kind", "inner_products", "lists_for", "refuse_unless", "sample_rows", "sample_size"]
