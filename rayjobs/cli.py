"""`rayjobs VERB`: the same entry points as `python -m rayjobs.VERB`."""

from __future__ import annotations

import difflib
import runpy
import sys

VERBS = {
    "fetch": "fetch imagery from tile services into the workspace",
    "sample": "read tiles from cloud-stored rasters into the workspace",
    "train": "learn the metric on the sampled tiles",
    "tune": "try many values of the experiment's keys, and tell which find best",
    "evaluate": "measure retrieval on held-out ground, beside what needs no training",
    "embed": "write the embedding table of a set",
    "index": "embed a set and publish a searchable index of it",
    "label": "learn from what people have labelled, and choose what they label next",
    "export": "write the chips of a set as image folders, Parquet or TFRecords",
    "serve": "answer queries over HTTP",
    "query": "ask a running service",
    "labels": "make taxonomies, and take labels in and out",
    "gc": "remove old versions of a workspace that nothing names any more",
    "doctor": "look for what is wrong, and say what to do about it",
    "demo": "the whole road on two real Landsat scenes",
}


PACKAGES = {"labels": "labelling"}
"""Verbs whose package has another name: `labels` is a room of nouns."""


def usage() -> str:
    """Return the list of verbs."""
    verbs = "\n".join(f"  {verb:<10}{text}" for verb, text in VERBS.items())
    first = "usage: rayjobs VERB --config FILE [--section.key VALUE ...]"
    return f"{first}\n\n{verbs}\n\n`rayjobs VERB --help` lists the options and keys of each."


def unknown(verb: str) -> str:
    """Return what to say of a verb that there is not."""
    near = difflib.get_close_matches(verb, VERBS, n=1)
    return f"rayjobs: there is no verb {verb!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def main() -> None:
    """Run the verb named first on the command line."""
    if len(sys.argv) > 1 and sys.argv[1] in VERBS:
        verb = sys.argv.pop(1)
        sys.argv[0] = f"rayjobs {verb}"
        runpy.run_module(f"rayjobs.{PACKAGES.get(verb, verb)}", run_name="__main__", alter_sys=False)
        return
    asked = len(sys.argv) > 1 and sys.argv[1] in {"-h", "--help"}
    text = usage() if asked or len(sys.argv) == 1 else f"{unknown(sys.argv[1])}\n\n{usage()}"
    print(text, file=sys.stdout if asked else sys.stderr)
    sys.exit(0 if asked else 2)
