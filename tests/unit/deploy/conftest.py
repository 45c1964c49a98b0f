"""Ray Serve, whose schema is asked, warns when it is imported, as in `tests/unit/serve/conftest.py`; so it is imported here first."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray.serve  # noqa: F401
