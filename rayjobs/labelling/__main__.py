"""Entry point of `rayjobs labels` and `python -m rayjobs.labelling`."""

import sys

from rayjobs import command
from rayjobs.labelling import job

options, overrides = job.parser().parse_known_args()
sys.exit(command.execute("labels", options, lambda console: job.run(options, overrides, console.say)))
