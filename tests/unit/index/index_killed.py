"""An action on an index in a process of its own, which ends as if its machine had lost power before one of its writes."""

from __future__ import annotations

import multiprocessing
import os
import signal

from rayjobs.storage import stores
from tests.unit.index.index_made import Made

ACTIONS = {
    "append": lambda index: index.append(range(150)),
    "delete": lambda index: index.delete(range(40)),
    "compact": lambda index: index.compact(),
}
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.unit.index.index_killed"])


def opened(uri):
    return Made(uri, kind="ivf_flat", rows_per_segment=60)


def _act(uri, environment, action, last, told):
    os.environ.update(environment)
    index = opened(uri)
    done = [0]

    def counted(function):
        def act(*arguments, **more):
            if done[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)
            done[0] += 1
            return function(*arguments, **more)

        return act

    for name in ("write", "swap", "delete", "upload"):
        setattr(type(index.store), name, counted(getattr(type(index.store), name)))
    stores._flush = counted(stores._flush)  # between writing aside and renaming, and after that
    ACTIONS[action](index)
    told.send(done[0])


def act(uri, environment, action, last=None):
    """Run an action, killed before its write number `last`; return how many writes it did, or None where it was killed."""
    here, there = _context.Pipe(duplex=False)
    process = _context.Process(target=_act, args=(uri, environment, action, last, there))
    process.start()
    there.close()
    process.join()
    assert process.exitcode in {0, -signal.SIGKILL}
    return here.recv() if process.exitcode == 0 else None
