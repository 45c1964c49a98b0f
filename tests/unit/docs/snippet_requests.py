"""The `curl` lines of the documents, held against the service's own description of itself."""

from __future__ import annotations

import argparse
import functools
import json
import re
import urllib.parse
from http import HTTPMethod

from rayjobs.serve import api, label_schema, schema
from tests.unit.docs.snippets import WrongSnippetError, check_body

_JSON = "application/json"
_PAGE = re.compile(r"/|/docs|/openapi\.json|/page/.*")
"""Paths that are for browsers, and stand in no description."""


def _parser():
    made = argparse.ArgumentParser(prog="curl", allow_abbrev=False)
    made.add_argument("url")
    for short, long in (("-s", "--silent"), ("-S", "--show-error"), ("-f", "--fail"), ("-i", "--include"), ("-N", "--no-buffer")):
        made.add_argument(short, long, action="store_true")
    made.add_argument("-X", "--request")
    made.add_argument("-H", "--header", action="append", default=[])
    made.add_argument("-d", "--data")
    made.add_argument("-F", "--form", action="append", default=[])
    made.add_argument("-o", "--output")
    return made


@functools.cache
def description():
    return api.build_api().openapi()


def check_curl(arguments, _snippet):
    """The path is one of the service's, takes the method, and knows the words of the query and the body."""
    options = _parser().parse_args(arguments)
    url = urllib.parse.urlsplit(options.url if "://" in options.url else f"http://{options.url}")
    if url.port != 8000 and not url.path.startswith("/v1/"):
        return  # another program's
    method = HTTPMethod(options.request or ("POST" if options.data or options.form else "GET"))
    operation = _operation(url.path or "/", method)
    if operation is not None:
        _check_query(url.query, operation)
        _check_what_is_sent(options, operation)


def _operation(path, method):
    for template, operations in description()["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
            if method.lower() not in operations:
                raise WrongSnippetError(f"{template} takes no {method}")
            return operations[method.lower()]
    if method == HTTPMethod.GET and _PAGE.fullmatch(path):
        return None
    raise WrongSnippetError(f"the service has no path {path}")


def _check_query(query, operation):
    known = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"}
    for name, _ in urllib.parse.parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise WrongSnippetError(f"there is no query parameter {name}")


def _check_what_is_sent(options, operation):
    taken = operation.get("requestBody", {}).get("content", {})
    if options.data is not None:
        if _JSON not in taken:
            raise WrongSnippetError("JSON is sent where none is taken")
        if not any(header.replace(" ", "").lower() == f"content-type:{_JSON}" for header in options.header):
            raise WrongSnippetError(f"JSON is sent without the header content-type: {_JSON}")
        _check_json(options.data, taken[_JSON]["schema"]["$ref"].rpartition("/")[2])
    elif options.form:
        _check_form(options.form, taken)
    elif taken and operation["requestBody"].get("required"):
        raise WrongSnippetError("nothing is sent where a body is needed")


def _check_json(data, model):
    if data.startswith("@"):
        return
    try:
        raw = json.loads(data)
    except json.JSONDecodeError as error:
        raise WrongSnippetError(f"no JSON: {error}") from None
    check_body(getattr(schema if hasattr(schema, model) else label_schema, model), raw)


def _check_form(fields, taken):
    if "multipart/form-data" not in taken:
        raise WrongSnippetError("a form is sent where none is taken")
    name = taken["multipart/form-data"]["schema"]["$ref"].rpartition("/")[2]
    form = description()["components"]["schemas"][name]
    given = {field.partition("=")[0] for field in fields}
    if given - form["properties"].keys():
        raise WrongSnippetError(f"the form has no {', '.join(sorted(given - form['properties'].keys()))}")
    if set(form.get("required", ())) - given:
        raise WrongSnippetError(f"the form lacks {', '.join(sorted(set(form['required']) - given))}")
