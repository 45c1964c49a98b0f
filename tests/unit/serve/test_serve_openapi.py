"""Whatever fits the OpenAPI description, and much that does not, asked of every route in front of a real index."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.checks import CHECKS

from rayjobs.labels.taxonomy import LabelClass, publish_taxonomy
from rayjobs.serve import api
from rayjobs.storage import open_store
from tests.unit.serve.service_double import application_in

HELD = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]


@pytest.fixture(scope="module")
def description(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    application = application_in(folder)
    publish_taxonomy(open_store(f"file:{folder / 'workspace'}"), "land", [LabelClass(name="field"), LabelClass(name="water")])
    return schemathesis.openapi.from_asgi("/openapi.json", application)


OPERATIONS = [(path, method) for path, methods in api.build_api().openapi()["paths"].items() for method in methods]


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=" ".join)
def test_every_route_holds_to_its_description(description, path, method):
    @hypothesis.settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(case=description[path][method].as_strategy(), known=st.booleans())
    def asked(case, known):
        if known and "taxonomy" in case.path_parameters:  # what nobody guesses
            case.path_parameters["taxonomy"], case.headers["x-rayjobs-person"] = "land", "anna"
        case.call_and_validate(checks=CHECKS.get_by_names(HELD))

    asked()
