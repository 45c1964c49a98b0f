"""What the routes ask of the deployment that they run in, and which deployment that is. Asked of Ray Serve at each request."""

from typing import Annotated, Protocol, cast

import fastapi
import numpy as np
import ray.serve

from rayjobs.rasters.uploads import UploadLimits
from rayjobs.serve.answers import Answers


class Service(Protocol):
    """What the routes need of the deployment that they run in."""

    answers: Answers
    uploads: UploadLimits
    """What an uploaded image must keep to."""

    async def embed(self, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Return the (dim,) float32 embedding of an image."""


def current_service() -> Service:
    """Return the deployment that this request reached."""
    return cast("Service", ray.serve.get_replica_context().servable_object)


Here = Annotated[Service, fastapi.Depends(current_service)]
"""A parameter of a route: the deployment that the request reached."""
