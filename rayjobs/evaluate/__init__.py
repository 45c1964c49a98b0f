"""The verb that measures retrieval on held-out ground, beside what needs no training."""
