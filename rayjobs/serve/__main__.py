"""Entry point of `rayjobs serve` and `python -m rayjobs.serve`."""

import sys

from rayjobs import command
from rayjobs.serve import job

sys.exit(command.main("serve", "Answer queries over HTTP.", job))
