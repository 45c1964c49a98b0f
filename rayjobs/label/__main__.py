"""Entry point of `rayjobs label` and `python -m rayjobs.label`."""

import sys

from rayjobs import command
from rayjobs.label import job

sys.exit(command.main("label", "Train a head on the labels given so far, and choose the tiles to label next.", job))
