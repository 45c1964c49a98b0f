"""Ray Serve warns of itself when it is imported, and warnings are errors in tests; so it is imported here first."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray.serve  # noqa: F401  for what importing it leaves behind
