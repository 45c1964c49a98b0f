"""What people said of tiles: taxonomy, label store, acquisition."""
