"""The `fetch` section of the experiment file."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from rayjobs.config import section

_Count = Annotated[int, pydantic.Field(ge=1)]
_Seconds = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]


@section
class FetchSection:
    """How politely a service is asked for imagery, and what is kept of it."""

    concurrency: _Count = 8
    """Requests under way at once, over the whole job."""
    requests_per_second: _Seconds = 20.0
    """Requests that begin, over the whole job, tries included."""
    tries: _Count = 6
    """Times that a request is made before it counts as failed."""
    timeout_s: _Seconds = 30.0
    """Seconds without a byte after which a try has failed."""
    backoff_s: _Seconds = 0.5
    """Longest wait before the second try, seconds; doubled before each further one."""
    longest_wait_s: _Seconds = 60.0
    """Longest wait before any try; a service that asks for more (Retry-After) is left alone, and the request has failed."""
    give_up_after: _Count = 20
    """After so many requests in a row that failed in every try, or were refused (by any status but 404 and 410, which say that nothing lies
    there), the rest is not asked for: the service is down, or turns whoever asks away."""
    tiles_per_piece: _Count = 64
    """Requests that one worker makes in a row, whose answers are kept in one file; it is written every ten seconds while they come in, so
    that a killed command loses at most the answers of its last ten seconds."""
    empty_statuses: tuple[int, ...] = (204,)
    """Statuses of HTTP by which the service says that a tile holds no data; 404, where it says it so."""
    nodata: int | None = None
    """Of tiles without opacity whose source has no `nodata`: pixels all of whose bands have this value hold no data (null: all hold data,
    as where the source is read without `fetch`)."""
    compress: Literal["deflate", "lzw", "zstd"] = "deflate"
    """Compression of the GeoTIFFs; none of them loses anything."""
    animation: Literal["none", "webp", "gif"] = "none"
    """An animated picture of each layer, a frame for each date, beside the GeoTIFFs."""
    animation_height: _Count = 1080
    """Greatest height of a frame, pixels; less where all frames, which are in memory together, would take more than 2 GiB, or one would be
    wider than the form can have (webp: 16,383 pixels)."""
    frames_per_second: _Seconds = 15.0
    """Of the animation; 15, as the earlier system has it."""
