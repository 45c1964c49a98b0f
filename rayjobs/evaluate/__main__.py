"""Entry point of `rayjobs evaluate` and `python -m rayjobs.evaluate`."""

import sys

from rayjobs import command
from rayjobs.evaluate import job

sys.exit(command.main("evaluate", "Measure retrieval on held-out ground, beside what needs no training.", job))
