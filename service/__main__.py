"""`python -m service`."""

from drawbridge.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
