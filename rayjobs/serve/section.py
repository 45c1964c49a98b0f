"""The `serve` section of the experiment file."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from rayjobs.config import section

Count = Annotated[int, pydantic.Field(ge=1)]
Positive = Annotated[float, pydantic.Field(gt=0)]


@section
class ServiceSection:
    """What the application itself is made of; in a Serve YAML its own keys."""

    replicas: Count = 1
    """Processes that take requests and search; the least of them where `max_replicas` is set."""
    max_replicas: Count | None = None
    """Most of those processes: their number follows the load, from `replicas` up. Default: always `replicas`."""
    encoders: Count = 1
    """Processes that embed uploaded images; the least of them where `max_encoders` is set."""
    max_encoders: Count | None = None
    """Most of those processes, as `max_replicas`."""
    shards: Count = 1
    """In how many parts the segments of an index are divided, each searched by processes of its own, on whichever node has room; 1: by
    those that take requests, which is faster as long as one node holds the index."""
    searchers: Count = 1
    """Processes that search each of several shards."""
    shard_cpus: Annotated[float, pydantic.Field(ge=0)] = 1
    """Processors that Ray reserves for each of those processes; 0 where memory alone decides who has room."""
    shard_memory_mb: Positive | None = None
    """Memory that Ray reserves for each of them, in MiB, so that no node is given more than fit. Default: none."""
    target_ongoing_requests: Positive = 16
    """Requests under way per process that autoscaling aims at."""
    max_ongoing_requests: Count = 64
    """Requests that one process works on at a time."""
    max_queued_requests: Count = 256
    """Requests that wait for such a place, per proxy (with HAProxy: per process); further ones are answered 503 at once."""
    retry_after_s: Positive = 1.0
    """What an answer 503 says under `Retry-After`, in whole seconds."""
    max_batch_size: Count = 16
    """Images that one encoder embeds together."""
    watch_s: Annotated[float, pydantic.Field(ge=0)] = 10.0
    """Seconds between two looks at which index version is current; 0 keeps the version of the start."""
    check_tiles: Annotated[int, pydantic.Field(ge=0)] = 8
    """Tiles of an index that the encoder embeds anew before the index is served; all must match."""
    max_limit: Count = 1000
    """Most hits that a request may ask for."""
    max_json_mb: Positive = 8.0
    """Largest request body of JSON, in MiB, which takes up to thirty times as much while it is read: 256 searches by embeddings of 1024
    numbers fit, and 64 examples of 4096."""
    max_upload_mb: Positive = 32.0
    """Largest request body with an image, in MiB."""
    max_upload_megapixels: Positive = 25.0
    """Largest uploaded image."""
    max_decoded_mb: Positive = 256.0
    """Largest uploaded image once it is decoded, all bands together, in MiB; decoding takes up to four times as much."""
    body_timeout_s: Positive = 5.0
    """A body of which nothing more comes for so long is answered 408; all of it may take `slowest_body_s`."""
    slowest_body_s: Positive = 60.0
    """A body that is not whole after so long is answered 408."""
    rate_limit: Annotated[str, pydantic.Field(pattern=r"^\d+ ?/ ?(second|minute|hour|day)$")] | None = None
    """Requests that the bearer of each token (all together, where none is asked for) may make of one process, such as `600/minute`;
    further ones are answered 429. Default: no limit."""
    label_lease_s: Positive = 300.0
    """Seconds for which a tile that is to be labelled is in one person's hands; then it may be handed to another."""
    cors_origins: tuple[str, ...] = ()
    """Origins, such as `https://maps.example.org`, whose pages may ask the service from a browser; `*` for all."""
    access_log: bool = True
    """Whether each request is one line of JSON in Ray Serve's log of the process."""


@section
class ServeSection(ServiceSection):
    """Where and how the service answers."""

    host: str = "127.0.0.1"
    """Address to listen on; loopback unless you choose another."""
    port: Annotated[int, pydantic.Field(ge=1, le=65535)] = 8000
    """Port of the HTTP service."""
    request_timeout_s: Positive = 30.0
    """A request that takes longer is answered 408."""
    trace_exporter: str | None = None
    """Function, as `module:function`, that returns OpenTelemetry's span processors; where it is set, requests and their stages are
    traced."""
    trace_share: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.01
    """Share of the requests that are traced."""
    proxy: Literal["python", "haproxy"] = "python"
    """What stands in front of the processes: Ray Serve's own proxy, or HAProxy (several times the requests per second; Linux). On a
    cluster that is joined, the nodes decide: see docs/http.md."""
