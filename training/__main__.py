"""The command `python -m training`."""

from models import memory
from training.cli import main

if __name__ == "__main__":
    memory.retain_freed_memory()
    raise SystemExit(main())
