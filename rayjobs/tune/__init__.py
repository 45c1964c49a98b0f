"""The verb that tries many values of an experiment's keys, on Ray Tune, and tells which find best."""
