"""Routes of the search page: its files, pictures of the scenes for its map, and how alike the ground in view is to what is searched."""

from typing import Annotated

import fastapi
from fastapi.responses import Response

from rayjobs.serve.page.files import FILES, INDEX

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
"""Of every file of the page: scripts come from here alone, and a newer service's files are taken up at once."""

router = fastapi.APIRouter(tags=["page"], include_in_schema=False)

Tag = Annotated[str | None, fastapi.Header(alias="if-none-match")]


@router.get("/")
def index(if_none_match: Tag = None) -> Response:
    """Answer the page."""
    return _file(INDEX, if_none_match)


@router.get("/page/{name}")
def page_file(name: str, if_none_match: Tag = None) -> Response:
    """Answer a file of the page. Names that are not in the list are none."""
    if name not in FILES:
        raise fastapi.HTTPException(404, f"the page has no file {name[:40]!r}")
    return _file(name, if_none_match)


def _file(name: str, known: str | None) -> Response:
    file = FILES[name]
    headers = {**_HEADERS, "etag": file.etag}
    if known is not None and file.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
