"""Entry point of `rayjobs embed` and `python -m rayjobs.embed`."""

import sys

from rayjobs import command
from rayjobs.embed import job

sys.exit(command.main("embed", "Write the embedding table of a set.", job))
