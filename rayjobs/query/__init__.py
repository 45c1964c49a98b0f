"""The verb that asks a running service: a client of its HTTP interface, and nothing more."""
