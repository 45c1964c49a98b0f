"""Whatever fits the OpenAPI description, and much that does not, asked of every route in front of a real index."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import CHECKS

from rayjobs.serve import api
from tests.unit.serve.service_double import application_in

HELD = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]


@pytest.fixture(scope="module")
def description(tmp_path_factory):
    return schemathesis.openapi.from_asgi("/openapi.json", application_in(tmp_path_factory.mktemp("served")))


OPERATIONS = [(path, method) for path, methods in api.build_api().openapi()["paths"].items() for method in methods]


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=" ".join)
def test_every_route_holds_to_its_description(description, path, method):
    @hypothesis.settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(case=description[path][method].as_strategy())
    def asked(case):
        case.call_and_validate(checks=CHECKS.get_by_names(HELD))

    asked()
