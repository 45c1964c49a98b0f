"""The search page at `/`: a map, hits beside it, and marks with which a person searches again. No build step, nothing from the network."""
