"""The verb that learns the metric, on Ray Train."""
