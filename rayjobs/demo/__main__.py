"""Entry point of `rayjobs demo` and `python -m rayjobs.demo`."""

import sys

from rayjobs import command
from rayjobs.demo import job

options = job.parser().parse_args()
sys.exit(command.execute("demo", options, lambda console: job.run(options, console)))
