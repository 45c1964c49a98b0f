"""Whatever fits the OpenAPI description, and much that does not, asked of every route in front of a real index."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import CHECKS

from rayjobs.rasters.uploads import UploadLimits
from rayjobs.serve import api
from rayjobs.serve.answers import Answers
from rayjobs.serve.held import Held, Target
from rayjobs.storage import open_store
from tests.unit.serve.served_index import VECTORS, publish

HELD = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]


class Service:
    """The deployment but for Ray: its encoder answers the same for every image."""

    last_error = None

    def __init__(self, answers):
        self._held = Held(lambda _: answers)
        self._held._loaded = (answers,)

    @property
    def answers(self):
        return self._held.current

    @property
    def versions(self):
        return self._held.versions

    def pinned(self, version):
        return self._held.pinned(version)

    def uploads_for(self, answers):
        return UploadLimits(bands=answers.spec.bands, dtype=answers.spec.dtype, max_pixels=10_000, max_bytes=10**6)

    async def embed(self, *_):
        return VECTORS[5]

    async def refresh(self):
        return Target(index_version="v1")


@pytest.fixture(scope="module")
def description(tmp_path_factory):
    store = open_store(f"file:{tmp_path_factory.mktemp('workspace')}")
    service = Service(Answers(publish(store), cache=tmp_path_factory.mktemp("cache"), max_limit=100))
    application = api.build_api()
    application.dependency_overrides[api.current_service] = lambda: service
    return schemathesis.openapi.from_asgi("/openapi.json", application)


OPERATIONS = [(path, method) for path, methods in api.build_api().openapi()["paths"].items() for method in methods]


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=" ".join)
def test_every_route_holds_to_its_description(description, path, method):
    @hypothesis.settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(case=description[path][method].as_strategy())
    def asked(case):
        case.call_and_validate(checks=CHECKS.get_by_names(HELD))

    asked()
