"""Calls from one deployment to another: what is raised where the other fails, or does not answer."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from rayjobs.errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def answering(otherwise: str) -> Iterator[None]:
    """Let pass what another deployment raises, and say of one that does not answer what that means.

    Args:
        otherwise: what that means.

    Raises:
        ServiceError: it does not answer.
    """
    try:
        yield
    except RayTaskError as error:
        raise error.cause from error
    except (BackPressureError, DeploymentUnavailableError, RayActorError, TimeoutError) as error:
        raise ServiceError(f"{otherwise}; ask again") from error
