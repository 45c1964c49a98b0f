"""The verb that looks for what is wrong, with a machine, a workspace, a cluster or an index, and says what to do about it."""
