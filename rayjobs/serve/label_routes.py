"""The routes under `/v1/labels`: taxonomies, tiles handed to people, what they say of them, and what follows from it."""

import urllib.parse
from http import HTTPStatus
from typing import Annotated, Any, Literal

import fastapi
from fastapi.responses import JSONResponse, Response

from rayjobs.errors import LabelError
from rayjobs.labels.events import check_person
from rayjobs.serve.features import CSV, GEOJSON
from rayjobs.serve.label_schema import (
    Added,
    Events,
    FullProgress,
    Handed,
    NewTaxonomy,
    NextRequest,
    Released,
    ReleaseRequest,
    SaidEvents,
    Taxonomies,
    TaxonomyAnswer,
)
from rayjobs.serve.limits import PEOPLE, PERSON
from rayjobs.serve.routes import versioned_router
from rayjobs.serve.service import Here, Pinned

PERSON_HEADER = "x-rayjobs-person"
"""The header in which somebody whose token has no name says who it is, percent-encoded where it is not plain ASCII."""

_LONGEST = 1000
"""Characters of that header: a name has 64, and each may take twelve when it is encoded."""

_MEDIA = {"csv": CSV, "geojson": GEOJSON}
_AS_FILES: dict[int | str, dict[str, Any]] = {200: {"content": {CSV: {}, GEOJSON: {}}}}

router = versioned_router()

Named = Annotated[str, fastapi.Path(alias="taxonomy", max_length=64)]


async def _person(
    request: fastapi.Request, header: Annotated[str | None, fastapi.Header(alias=PERSON_HEADER, max_length=_LONGEST)] = None
) -> str:
    """Return who asks: the name of the token, else of the header.

    Raises:
        LabelError: neither says.
        HTTPException: 403 where the header names somebody else than the token, or, without a name of its own, somebody who has a token.
    """
    known = getattr(request.state, PERSON, None)
    claimed = None if header is None else _claimed(header)
    if claimed is None and known is None:
        raise LabelError("who labels? use a token with a name (RAYJOBS_LABEL_TOKENS), or send the header X-Rayjobs-Person")
    if claimed is None or claimed == known:
        return str(known)
    if known is not None:
        raise _forbidden(f"the token is {known}'s, and X-Rayjobs-Person says {claimed}; use {claimed}'s own token, or leave the header out")
    if claimed in getattr(request.state, PEOPLE, ()):
        raise _forbidden(f"{claimed} has a token of their own, and this is not it; use that one, or another name in X-Rayjobs-Person")
    return claimed


def _claimed(header: str) -> str:
    try:
        return check_person(urllib.parse.unquote(header))
    except ValueError as error:
        raise LabelError(f"X-Rayjobs-Person: {error}") from None


def _forbidden(detail: str) -> fastapi.HTTPException:
    return fastapi.HTTPException(HTTPStatus.FORBIDDEN, detail)


Person = Annotated[str, fastapi.Depends(_person)]
"""A parameter of a route: the name of who asks."""


@router.get("/v1/labels", tags=["labels"], response_class=JSONResponse)
def taxonomies(service: Here, request: fastapi.Request, answers: Pinned) -> Taxonomies:
    """List the taxonomies, with their classes and how far each is."""
    return Taxonomies(taxonomies=service.labelling.taxonomies(answers), person=getattr(request.state, PERSON, None))


@router.post("/v1/labels", tags=["labels"], status_code=HTTPStatus.CREATED, response_class=JSONResponse)
def publish(service: Here, answers: Pinned, given: NewTaxonomy) -> TaxonomyAnswer:
    """Make a taxonomy, or the next version of one; the same classes again change nothing."""
    return service.labelling.publish(given, answers)


@router.post("/v1/labels/{taxonomy}/next", tags=["labels"], response_class=JSONResponse)
def hand(service: Here, answers: Pinned, taxonomy: Named, asked: NextRequest, person: Person) -> Handed:
    """Hand out tiles that nobody has labelled; until its lease expires each is in no one else's hands."""
    return service.labelling.hand(taxonomy, person, asked, answers)


@router.post("/v1/labels/{taxonomy}/events", tags=["labels"], response_class=JSONResponse)
def add(service: Here, answers: Pinned, taxonomy: Named, said: SaidEvents, person: Person) -> Added:
    """Take down labels, unsure ones and undone ones; when this answers, they are kept. 409 names those that others labelled first."""
    return service.labelling.add(taxonomy, person, said.events, answers)


@router.post("/v1/labels/{taxonomy}/release", tags=["labels"], response_class=JSONResponse)
def release(service: Here, taxonomy: Named, asked: ReleaseRequest, person: Person) -> Released:
    """Let go of tiles, which others may be handed then."""
    return Released(released=service.labelling.release(taxonomy, person, asked.leases))


@router.get("/v1/labels/{taxonomy}/progress", tags=["labels"], response_class=JSONResponse)
def progress(service: Here, taxonomy: Named, answers: Pinned) -> FullProgress:
    """Tell how far a taxonomy is, by class and by person."""
    return service.labelling.progress(taxonomy, answers)


@router.get("/v1/labels/{taxonomy}/events", tags=["labels"], response_class=JSONResponse)
def audit(
    service: Here,
    taxonomy: Named,
    since: Annotated[int, fastapi.Query(ge=0, description="events to leave out: `next` of the answer before")] = 0,
    limit: Annotated[int, fastapi.Query(ge=1, le=10_000)] = 1000,
) -> Events:
    """List who said what and when, in order; undone events stay."""
    return service.labelling.audit(taxonomy, since, limit)


@router.get("/v1/labels/{taxonomy}/export", tags=["labels"], response_class=Response, responses=_AS_FILES)
def export(
    service: Here,
    taxonomy: Named,
    answers: Pinned,
    format: Annotated[Literal["csv", "geojson"], fastapi.Query()] = "csv",  # noqa: A002  its name in the URL
) -> Response:
    """Give the current labels as CSV or GeoJSON."""
    name = f'attachment; filename="{urllib.parse.quote(taxonomy)}.{format}"'
    content = service.labelling.export(taxonomy, format, answers)
    return Response(content, media_type=_MEDIA[format], headers={"content-disposition": name})
