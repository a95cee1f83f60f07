"""``python -m events_core.cli`` is ``events``."""

import sys

from events_core.cli import main

sys.exit(main())
