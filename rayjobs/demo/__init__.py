"""The verb that walks the whole road on two real Landsat scenes, by the same commands that a person would type."""
