"""What the routes ask of the deployment that they run in, and which deployment that is. Asked of Ray Serve at each request."""

from typing import Annotated, Protocol, cast

import fastapi
import numpy as np
import ray.serve

from rayjobs.rasters.uploads import UploadLimits
from rayjobs.serve.answers import Answers
from rayjobs.serve.held import Target
from rayjobs.serve.labelling import Labelling


class Service(Protocol):
    """What the routes need of the deployment that they run in.

    A request asks for its index version once, with `pinned`, and hands it on: another may be taken up while the request is under way.
    """

    @property
    def answers(self) -> Answers:
        """The index version that is served now."""

    @property
    def versions(self) -> list[str]:
        """Names of the index versions that a request may pin, the current one first."""

    @property
    def last_error(self) -> str | None:
        """Why a later version was not taken up; None where none was refused."""

    @property
    def labelling(self) -> Labelling:
        """The labels of the workspace."""

    def pinned(self, version: str | None) -> Answers:
        """Return an index version by name; None stands for the current one. Raises `PinnedVersionError`."""

    def uploads_for(self, answers: Answers) -> UploadLimits:
        """Return what an uploaded image must keep to that is searched for in an index version."""

    async def embed(self, pixels: np.ndarray, valid: np.ndarray, answers: Answers) -> np.ndarray:
        """Return the (dim,) float32 embedding of an image by the encoder of an index version."""

    async def refresh(self) -> Target:
        """Look at once which index version is current. Raises `ServiceError` where nobody looks."""


async def current_service() -> Service:
    """Return the deployment that this request reached; asynchronous, since FastAPI asks others in a thread of their own."""
    return cast("Service", ray.serve.get_replica_context().servable_object)


Here = Annotated[Service, fastapi.Depends(current_service)]
"""A parameter of a route: the deployment that the request reached."""

INDEX_VERSION = "x-index-version"
"""The header of an answer that names the index version it is from."""

Pin = Annotated[str | None, fastapi.Query(alias="index_version", max_length=100, description="answer from this version, or with 409")]


async def pinned_answers(service: Here, response: fastapi.Response, pin: Pin = None) -> Answers:
    """Return the index version that a request is answered from, and have the answer's header name it; see `Service.pinned`."""
    answers = service.pinned(pin)
    response.headers.update(naming(answers))
    return answers


def naming(answers: Answers) -> dict[str, str]:
    """Return the header that names an index version, for answers that a route makes whole."""
    return {INDEX_VERSION: answers.version}


Pinned = Annotated[Answers, fastapi.Depends(pinned_answers)]
"""A parameter of a route: the index version to answer from."""
