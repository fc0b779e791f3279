"""`python -m trust [TRIAL ...]`."""

import sys

from chaos.cli import main

sys.exit(main())
