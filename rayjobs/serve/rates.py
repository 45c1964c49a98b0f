"""How often somebody may ask: a limit per token, or one for everybody together where no token is asked for."""

from __future__ import annotations

import math
import time

import limits
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter


class Rate:
    """A limit such as `600/minute`, counted over a moving window by this process alone."""

    def __init__(self, rate: str) -> None:
        """Take the limit in the notation of the package `limits`."""
        self._limit = limits.parse(rate)
        self._asked = MovingWindowRateLimiter(MemoryStorage())

    def wait_s(self, who: str) -> int | None:
        """Count a request; return None where it may go on, else whole seconds until one may."""
        if self._asked.hit(self._limit, who):
            return None
        reset = self._asked.get_window_stats(self._limit, who).reset_time
        return max(1, math.ceil(reset - time.time()))

    def __str__(self) -> str:
        """Say the limit."""
        return str(self._limit)
