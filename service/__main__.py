"""`python -m service`: the service, as the environment sets it."""

import sys

from pydantic import ValidationError

from service import front, log
from service.settings import Settings


def main() -> int:
    """Serve until a signal; 2 and one line for settings that cannot be."""
    try:
        settings = Settings()
        log.configure(settings)
        return front.serve(settings)
    except ValidationError as error:
        wrong = (f"DRAWBRIDGE_{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors())
        print(f"error: {'; '.join(wrong)}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
