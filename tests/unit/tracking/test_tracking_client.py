"""What failures of MLflow's client mean."""

from __future__ import annotations

import pytest
from mlflow import MlflowException

from rayjobs.tracking.client import AwayError, Client, RefusedError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow uses what SQLAlchemy has deprecated


class Server:
    """Fails so many times with an error, and answers to other calls or not."""

    def __init__(self, error, times, *, answers):
        self.error, self.times, self.answers, self.calls = error, times, answers, 0

    def search_experiments(self, max_results):
        if not self.answers:
            raise ConnectionError("refused")
        return [None] * max_results

    def log(self):
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return "logged"


@pytest.fixture
def ask(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)

    def asked(error, times, *, answers=True):
        server = Server(error, times, answers=answers)
        client = Client("x")
        client._made = server
        try:
            return client.ask(lambda server: server.log()), server.calls
        except (AwayError, RefusedError) as failure:
            return type(failure), server.calls

    return asked


def coded(code):
    error = MlflowException("no")
    error.error_code = code
    return error


def test_a_hiccup_is_tried_again(ask):
    assert ask(ConnectionError("reset"), 2) == ("logged", 3)


def test_a_server_that_answers_to_nothing_is_away(ask):
    assert ask(ConnectionError("refused"), 9, answers=False) == (AwayError, 1)
    assert ask(coded("INTERNAL_ERROR"), 9, answers=False) == (AwayError, 1)


def test_a_database_that_is_locked_is_away(ask):
    assert ask(coded("TEMPORARILY_UNAVAILABLE"), 9) == (AwayError, 1)


@pytest.mark.parametrize("code", ["INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "ENDPOINT_NOT_FOUND"])
def test_what_a_server_never_takes_is_refused_at_once(ask, code):
    assert ask(coded(code), 9) == (RefusedError, 1)


def test_what_it_fails_to_take_while_it_answers_is_refused_after_three_tries(ask):
    assert ask(PermissionError("no right to write to the bucket"), 9) == (RefusedError, 3)


def test_an_address_that_is_none_is_refused():
    with pytest.raises(RefusedError, match="nowhere://server"):
        Client("nowhere://server").ask(lambda client: client.search_experiments())
