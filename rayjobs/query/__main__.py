"""Entry point of `rayjobs query` and `python -m rayjobs.query`."""

import sys

from rayjobs import command
from rayjobs.query import job

options, overrides = job.parser().parse_known_args()
sys.exit(command.execute("query", options, lambda console: job.run(options, overrides, console)))
