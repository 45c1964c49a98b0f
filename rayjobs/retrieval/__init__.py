"""Vectors and what is nearest to them: FAISS segments, manifest, search, ranking metrics and their intervals.

Knows no imagery and no Ray.
"""
