"""`python -m training COMMAND`: the same as `drawbridge COMMAND`."""

from drawbridge.cli import training_main

if __name__ == "__main__":
    raise SystemExit(training_main())
