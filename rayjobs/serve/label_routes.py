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
from rayjobs.serve.limits import PERSON
from rayjobs.serve.routes import versioned_router
from rayjobs.serve.service import Here, Pinned

PERSON_HEADER = "x-rayjobs-person"
"""The header in which somebody whose token has no name says who it is, percent-encoded where it is not plain ASCII."""

_MEDIA = {"csv": CSV, "geojson": GEOJSON}
_AS_FILES: dict[int | str, dict[str, Any]] = {200: {"content": {CSV: {}, GEOJSON: {}}}}

router = versioned_router()

Named = Annotated[str, fastapi.Path(alias="taxonomy", max_length=64)]


async def _person(
    request: fastapi.Request, header: Annotated[str | None, fastapi.Header(alias=PERSON_HEADER, max_length=300)] = None
) -> str:
    """Return who asks: the name of the token, else of the header. Raises `LabelError` where neither says."""
    known = getattr(request.state, PERSON, None)
    if known is not None:
        return str(known)
    if header is None:
        raise LabelError("who labels? use a token with a name (RAYJOBS_LABEL_TOKENS), or send the header X-Rayjobs-Person")
    try:
        return check_person(urllib.parse.unquote(header))
    except ValueError as error:
        raise LabelError(f"X-Rayjobs-Person: {error}") from None


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
