"""Which places a set looks at: the tile table, how places are chosen and divided, and which are near each other."""
