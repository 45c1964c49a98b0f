"""Entry point of `rayjobs sample` and `python -m rayjobs.sample`."""

import sys

from rayjobs import command
from rayjobs.sample import job

sys.exit(command.main("sample", "Read tiles from cloud-stored rasters into the workspace.", job))
