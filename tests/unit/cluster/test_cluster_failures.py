from __future__ import annotations

import pytest

from rayjobs.cluster.failures import own_error
from rayjobs.errors import StorageError


class WrappedError(Exception):
    """As Ray's: the cause in an attribute."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("far away")
        self.cause = cause


class OfWorkersError(Exception):
    """As Ray Train's: one failure per worker."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("workers failed")
        self.worker_failures = failures


def raised_from(cause: Exception) -> Exception:
    error = ValueError("wrapped")
    error.__cause__ = cause
    return error


OURS = StorageError("the bucket does not answer")


@pytest.mark.parametrize(
    "error",
    [
        OURS,
        WrappedError(OURS),
        raised_from(OURS),
        WrappedError(raised_from(OURS)),
        OfWorkersError({0: KeyError("x"), 1: WrappedError(OURS)}),
    ],
)
def test_our_error_is_found_in_what_is_wrapped_round_it(error):
    assert own_error(error) is OURS


def test_an_error_of_others_is_none_of_ours_even_in_a_circle():
    one, two = WrappedError(ValueError()), WrappedError(ValueError())
    one.cause, two.cause = two, one
    assert own_error(one) is None
