"""The deployment but for Ray: what stands behind the routes in tests. Its encoder knows one image."""

from __future__ import annotations

from rayjobs.rasters.uploads import UploadLimits
from rayjobs.serve import api
from rayjobs.serve.answers import Answers
from rayjobs.serve.held import Held, Target
from rayjobs.serve.labelling import Labelling
from rayjobs.storage import open_store
from tests.unit.serve.served_index import VECTORS, publish


class Service:
    """Answers from one index version."""

    last_error = None

    def __init__(self, answers, store=None):
        self.labelling = Labelling(store, lease_s=60.0)
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
        return UploadLimits(modalities=answers.spec.modalities[:2], dtype=answers.spec.dtype, max_pixels=10_000, max_bytes=10**6)

    async def embed(self, pixels, valid, answers):
        assert answers is self.answers
        assert pixels.shape[1:] == valid.shape
        return VECTORS[5]

    async def refresh(self):
        return Target(index_version=self.answers.version)


def application_in(folder):
    """The HTTP application in front of the index of `served_index`, published into a folder."""
    store = open_store(f"file:{folder / 'workspace'}")
    version = publish(store)
    service = Service(Answers(version, cache=folder / "cache", max_limit=100), store)
    application = api.build_api()
    application.dependency_overrides[api.current_service] = lambda: service
    return application
