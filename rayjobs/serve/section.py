"""The `serve` section of the experiment file."""

from __future__ import annotations

from typing import Annotated

import pydantic

from rayjobs.config import section


@section
class ServiceSection:
    """What the application itself is made of; in a Serve YAML its own keys."""

    replicas: Annotated[int, pydantic.Field(ge=1)] = 1
    """Processes that take requests and search."""
    encoders: Annotated[int, pydantic.Field(ge=1)] = 1
    """Processes that embed uploaded images."""
    max_batch_size: Annotated[int, pydantic.Field(ge=1)] = 16
    """Images that one encoder embeds together."""
    max_limit: Annotated[int, pydantic.Field(ge=1)] = 1000
    """Most hits that a request may ask for."""
    max_upload_mb: Annotated[float, pydantic.Field(gt=0)] = 32.0
    """Largest request body, in MiB."""
    max_upload_megapixels: Annotated[float, pydantic.Field(gt=0)] = 25.0
    """Largest uploaded image."""
    max_decoded_mb: Annotated[float, pydantic.Field(gt=0)] = 256.0
    """Largest uploaded image once it is decoded, all bands together, in MiB; decoding takes up to four times as much."""


@section
class ServeSection(ServiceSection):
    """Where and how the service answers."""

    host: str = "127.0.0.1"
    """Address to listen on; loopback unless you choose another."""
    port: Annotated[int, pydantic.Field(ge=1, le=65535)] = 8000
    """Port of the HTTP service."""
    request_timeout_s: Annotated[float, pydantic.Field(gt=0)] = 30.0
    """A request that takes longer is answered 408."""
