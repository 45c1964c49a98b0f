"""Entry point of `rayjobs fetch` and `python -m rayjobs.fetch`."""

import sys

from rayjobs.fetch import job

sys.exit(job.main())
