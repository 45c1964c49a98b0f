"""The verb that removes old versions of a workspace which nothing names any more. Needs no Ray."""
