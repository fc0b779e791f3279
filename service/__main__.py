"""`python -m service COMMAND`: the same as `drawbridge COMMAND`, and without a command `drawbridge serve`."""

import sys

from drawbridge.cli import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:] or ["serve"]))
