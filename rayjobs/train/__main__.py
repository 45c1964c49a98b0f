"""Entry point of `rayjobs train` and `python -m rayjobs.train`."""

import sys

from rayjobs import command
from rayjobs.train import job

sys.exit(command.main("train", "Learn the metric on the sampled tiles.", job))
