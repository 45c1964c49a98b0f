"""Entry point of `rayjobs gc` and `python -m rayjobs.gc`."""

import sys

from rayjobs.gc import job

sys.exit(job.main())
