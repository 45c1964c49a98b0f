"""Set x encoder -> embedding table, on Ray Data: the one job that other verbs build on."""
