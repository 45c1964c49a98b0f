"""Which pairs matter and how much: losses, miners within a batch, mining over a whole set. Knows nothing of pixels, models or Ray."""
