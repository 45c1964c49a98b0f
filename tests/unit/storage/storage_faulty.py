"""A store whose conditional writes fail as they are told to."""

from __future__ import annotations

import threading
from collections import deque

from rayjobs.errors import PublishConflictError, StorageError

REFUSED = "refused"
"""Nothing is written: the network is down."""
UNANSWERED = "unanswered"
"""The bytes arrive, the answer does not."""
ANSWERED_TWICE = "answered twice"
"""The bytes arrive, the answer does not, and the client's second attempt meets the bytes of its first."""


class Faulty:
    """Another store, with faults that befall its next conditional writes, one each."""

    def __init__(self, store, *faults):
        self._store = store
        self.faults = deque(faults)
        self.recovered = threading.Event()
        """Set by the first write that succeeds after a fault."""
        self._failed = False

    def __getattr__(self, name):
        return getattr(self._store, name)

    def swap(self, key, data, *, expected):
        fault = self.faults.popleft() if self.faults else None
        self._failed = self._failed or fault is not None
        if fault == REFUSED:
            raise StorageError("cannot reach the store")
        tag = self._store.swap(key, data, expected=expected)
        if fault == UNANSWERED:
            raise StorageError("no answer came")
        if fault == ANSWERED_TWICE:
            raise PublishConflictError("changed by another writer")
        if self._failed:
            self.recovered.set()
        return tag
