"""Learn what places look like from imagery in the cloud, and find every place that looks like one.

Importing the package loads nothing heavy: torch, ray and rasterio come in with the rooms that use them.
"""

__version__ = "0.1.0"
