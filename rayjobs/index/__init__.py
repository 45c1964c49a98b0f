"""The verb that embeds a set and publishes a searchable index of it."""
