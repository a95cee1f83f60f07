"""The program ``events``, started as ``python -m events_core.cli``."""

import sys

from events_core.cli import main

sys.exit(main())
