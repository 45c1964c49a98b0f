"""Ray and Ray Serve warn when their command lines are imported, and warnings are errors in tests; so they are imported here first."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray.scripts.scripts
    import ray.serve.scripts  # noqa: F401  for what importing them leaves behind
