"""`python -m service`: the service, as the environment sets it."""

import logging
import sys

import uvicorn
from pydantic import ValidationError

from service.app import choose_device, create_app
from service.settings import Settings


def main() -> int:
    """Serve until a signal; 2 and one line for settings that cannot be."""
    try:
        settings = Settings()
        choose_device(settings.device)
    except ValidationError as error:
        wrong = (f"DRAWBRIDGE_{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors())
        print(f"error: {'; '.join(wrong)}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        log_level=settings.log_level,
        timeout_graceful_shutdown=int(settings.drain_seconds) + 1,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
