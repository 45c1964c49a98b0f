"""Entry point of `rayjobs doctor` and `python -m rayjobs.doctor`."""

import sys

from rayjobs.doctor import job

sys.exit(job.main())
