"""`python -m trust [TRIAL ...]`."""

import sys

from trust.cli import main

sys.exit(main())
