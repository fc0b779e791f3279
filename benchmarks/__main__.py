"""`python -m benchmarks NAME`: each prints a table of what was measured side by side in one run."""

import importlib
import pkgutil
import sys
from pathlib import Path

NOT_ONES = {"__main__", "overhead", "peers"}


def main() -> int:
    """Run the benchmark that is named; 2 and those that there are where there is none of that name."""
    names = sorted(
        found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)]) if found.name not in NOT_ONES
    )
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        print(f"error: name one of {', '.join(names)}", file=sys.stderr)
        return 2
    name = sys.argv.pop(1)
    importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
