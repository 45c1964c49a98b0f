"""What requests say beside JSON: query parameters, and the fields of a multipart form that say what JSON says elsewhere."""

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import fastapi
import pydantic
from fastapi.exceptions import RequestValidationError

from rayjobs.serve.schema import Filters

_LONGEST = 1_000_000
"""Characters of a field that holds JSON."""


async def known_words(request: fastapi.Request) -> None:
    """Refuse query parameters and fields of a form that a route does not have; FastAPI leaves them out without a word.

    Raises:
        RequestValidationError: names them.
    """
    operation, schemas = _described(request)
    faults = _unknown("query", request.query_params, [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"])
    if form := operation.get("requestBody", {}).get("content", {}).get("multipart/form-data"):
        fields = schemas[form["schema"]["$ref"].rpartition("/")[2]]["properties"]
        faults += _unknown("body", await request.form(), fields)
    if faults:
        raise RequestValidationError(faults)


def _described(request: fastapi.Request) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return how OpenAPI describes what is asked for, and the schemas that it refers to."""
    described = request.app.openapi()
    operation = described["paths"][request.scope["route"].path_format][request.method.lower()]
    return operation, described["components"]["schemas"]


def _unknown(where: str, given: Iterable[str], known: Iterable[str]) -> list[dict[str, Any]]:
    """Return a fault for each name that is not known, once."""
    names = sorted(known)
    return [
        {"type": "extra_forbidden", "loc": (where, name[:100]), "msg": f"there is no such field; {_instead(name, names)}", "input": ""}
        for name in sorted(set(given) - set(names))
    ]


def _instead(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name[:100], known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there are {', '.join(known)}" if known else "there are none"


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


FormFilters = Annotated[Filters, fastapi.Depends(filters_of_form)]
"""A parameter of a route: filters out of a form."""
