"""`python -m chaos [--quick] [--write FILE] [SCENARIO ...]`."""

import sys

from chaos.cli import main

sys.exit(main())
