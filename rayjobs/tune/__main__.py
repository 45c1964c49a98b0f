"""Entry point of `rayjobs tune` and `python -m rayjobs.tune`."""

import sys

from rayjobs import command
from rayjobs.tune import job

sys.exit(command.main("tune", "Try many values of the experiment's keys, and tell which find best on the validation split.", job))
