"""`python -m benchmarks NAME`: runs the benchmark called NAME."""

import importlib
import pkgutil
import sys
from pathlib import Path

HELPERS = {"__main__", "overhead", "peers", "published"}
"""Modules here that are not benchmarks."""


def main() -> int:
    """Run the benchmark that the first argument names. Returns 2 if there is none of that name."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    names = sorted(module.name for module in modules if module.name not in HELPERS)
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        print(f"error: name one of {', '.join(names)}", file=sys.stderr)
        return 2
    name = sys.argv.pop(1)
    importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
