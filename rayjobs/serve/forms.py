"""The fields of a multipart form that say what JSON says elsewhere."""

import difflib
import inspect
import json
from typing import Annotated, Any

import fastapi
import pydantic
from fastapi.exceptions import RequestValidationError

from rayjobs.serve.schema import Filters

_LONGEST = 1_000_000
"""Characters of a field that holds JSON."""


async def known_fields(request: fastapi.Request) -> None:
    """Refuse fields that a form of `/v1/search/image` does not have; FastAPI leaves them out without a word.

    Raises:
        RequestValidationError: names them.
    """
    unknown = sorted(set(await request.form()) - _FIELDS)
    if unknown:
        faults = [{"type": "extra_forbidden", "loc": ("body", name[:100]), "msg": _unknown(name), "input": ""} for name in unknown]
        raise RequestValidationError(faults)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, _FIELDS, n=1)
    return f"there is no such field; {f'did you mean {near[0]!r}?' if near else 'there are ' + ', '.join(sorted(_FIELDS))}"


def filters_of_form(
    limit: Annotated[int, fastapi.Form(ge=1)] = 10,
    offset: Annotated[int, fastapi.Form(ge=0)] = 0,
    threshold: Annotated[float | None, fastapi.Form()] = None,
    bbox: Annotated[str | None, fastapi.Form(max_length=200, description="west,south,east,north")] = None,
    intersects: Annotated[str | None, fastapi.Form(max_length=_LONGEST, description="a GeoJSON Polygon or MultiPolygon")] = None,
    datetime: Annotated[str | None, fastapi.Form(max_length=100)] = None,
    labels: Annotated[list[str] | None, fastapi.Form(description="may be given several times")] = None,
    scenes: Annotated[list[str] | None, fastapi.Form(description="may be given several times")] = None,
    where: Annotated[str | None, fastapi.Form(max_length=_LONGEST, description="a JSON object of columns and values")] = None,
    spread_m: Annotated[float | None, fastapi.Form()] = None,
    exact: Annotated[bool | None, fastapi.Form()] = None,
    index_version: Annotated[str | None, fastapi.Form(max_length=100)] = None,
) -> Filters:
    """Read the filters of a search beside an uploaded image; they mean what they mean in JSON.

    Raises:
        RequestValidationError: a field is not of its form.
    """
    fields = {
        "limit": limit,
        "offset": offset,
        "threshold": threshold,
        "bbox": numbers_of(bbox),
        "intersects": _json("intersects", intersects),
        "datetime": datetime,
        "labels": labels,
        "scenes": scenes,
        "where": _json("where", where),
        "spread_m": spread_m,
        "exact": exact,
        "index_version": index_version,
    }
    try:
        return Filters.model_validate({name: value for name, value in fields.items() if value is not None})
    except pydantic.ValidationError as error:
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors(include_url=False)]) from None


def numbers_of(text: str | None) -> list[str] | None:
    """Return the parts of `west,south,east,north`, to be validated as numbers."""
    return None if text is None else text.split(",")


def _json(name: str, text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        fault = {"type": "json_invalid", "loc": ("body", name), "msg": f"JSON decode error: {str(error)[:200]}", "input": text[:100]}
        raise RequestValidationError([fault]) from None


_FIELDS = {"image", *inspect.signature(filters_of_form).parameters}

FormFilters = Annotated[Filters, fastapi.Depends(filters_of_form)]
"""A parameter of a route: filters out of a form."""
