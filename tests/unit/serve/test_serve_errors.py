from __future__ import annotations

from http import HTTPStatus

import pytest

from rayjobs import errors
from rayjobs.query import job as query
from rayjobs.serve.errors import STATUS, problem, status_of


def leaves(kind):
    below = [own for own in kind.__subclasses__() if own.__module__ == errors.__name__]
    return [leaf for own in below for leaf in leaves(own)] if below else [kind]


@pytest.mark.parametrize("kind", leaves(errors.RayjobsError), ids=lambda kind: kind.__name__)
def test_every_leaf_of_the_tree_has_a_status_of_its_own_branch(kind):
    assert any(ancestor in STATUS for ancestor in kind.__mro__), "nobody has decided what a client is told"
    assert 400 <= status_of(kind) < 600


@pytest.mark.parametrize("kind", leaves(errors.QueryError), ids=lambda kind: kind.__name__)
def test_what_the_client_did_wrong_is_in_the_400s(kind):
    assert 400 <= status_of(kind) < 500


def test_the_ones_that_clients_act_on():
    expected = {
        errors.UploadTooLargeError: 413, errors.UploadError: 415, errors.QueryError: 400, errors.UnknownTileError: 404,
        errors.IndexCorruptError: 503, errors.FingerprintError: 503, errors.NotFoundError: 503,
    }  # fmt: skip
    assert {kind: int(status_of(kind)) for kind in expected} == expected


def test_faults_of_ours_are_500():
    assert status_of(ZeroDivisionError) == HTTPStatus.INTERNAL_SERVER_ERROR


def test_a_problem_says_what_rfc_9457_asks_for():
    body = problem(HTTPStatus.NOT_FOUND, "no tile x", tile="x")
    assert body == {"type": "about:blank", "title": "Not Found", "status": 404, "detail": "no tile x", "tile": "x"}


def test_a_client_without_a_service_gets_an_error_of_the_tree():
    with pytest.raises(errors.ServiceError, match=r"no service answers at http://127\.0\.0\.1:9 .* start one with `rayjobs serve`"):
        query.ask("http://127.0.0.1:9", {}, None)
