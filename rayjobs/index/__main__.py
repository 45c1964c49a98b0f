"""Entry point of `rayjobs index` and `python -m rayjobs.index`."""

import sys

from rayjobs.index import actions

sys.exit(actions.main())
