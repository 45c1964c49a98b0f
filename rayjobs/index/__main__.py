"""Entry point of `rayjobs index` and `python -m rayjobs.index`."""

import sys

from rayjobs import command
from rayjobs.index import job

sys.exit(command.main("index", "Embed a set and publish a searchable index of it.", job))
