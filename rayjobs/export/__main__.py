"""Entry point of `rayjobs export` and `python -m rayjobs.export`."""

import sys

from rayjobs.export import job

sys.exit(job.main())
