"""Encoders: what turns pixels into a vector, and the checkpoint that carries one. Knows nothing of rasters, sets or Ray."""
