"""The verb that answers queries over HTTP, on Ray Serve."""
