"""API keys and their limits, read from a TOML file that holds only the keys' hashes.

    [[keys]]
    name = "physics-101"
    sha256 = "9f86d0..."
    requests = "50/second"
    images = "100000/day"
    concurrent = 16

A key is 32 random bytes, so a plain SHA-256 of it is as hard to invert as a slow hash.
"""

import hashlib
import hmac
import json
import re
import secrets
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from service.errors import describe

PERIODS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
KEY_PREFIX = "db_"
"""The prefix of every key, by which a leaked key can be recognized."""


@dataclass(frozen=True)
class RateLimit:
    """An amount per period of seconds."""

    amount: int
    seconds: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `50/second`, or an amount per minute, hour or day."""
        match = re.fullmatch(r"([1-9][0-9]{0,11})/(second|minute|hour|day)", text)
        if match is None:
            raise PydanticCustomError("rate", "write it as 50/second, or per minute, hour or day")
        return cls(int(match[1]), PERIODS[match[2]])


class Key(BaseModel):
    """A key's name, hash and limits; a limit that is None does not apply."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    requests: RateLimit | None = None
    images: RateLimit | None = None
    concurrent: Annotated[int, Field(ge=1)] | None = None

    @field_validator("requests", "images", mode="before")
    @classmethod
    def _rate(cls, value: object) -> object:
        return RateLimit.parse(value) if isinstance(value, str) else value


class Keys(BaseModel):
    """All keys of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[Key, ...] = ()

    @field_validator("keys")
    @classmethod
    def _distinct(cls, keys: tuple[Key, ...]) -> tuple[Key, ...]:
        for part in ("name", "sha256"):
            if len({getattr(key, part) for key in keys}) < len(keys):
                raise PydanticCustomError("twice", "two keys have the same {part}", {"part": part})
        return keys

    def find(self, secret: str) -> Key | None:
        """The key that `secret` is, or None. The time it takes does not depend on the result."""
        digest = hashlib.sha256(secret.encode()).hexdigest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


def read(path: Path) -> Keys:
    """Read the keys in a file. Raises ValueError with one line if they cannot be read."""
    try:
        return Keys(**tomllib.loads(path.read_text()))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; create it with `drawbridge key NAME`") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {describe(error)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None


def add(path: Path, name: str, limits: dict[str, str | int]) -> str:
    """Add a new key to the file and return it. Raises ValueError, and changes nothing, if the file would be invalid."""
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    entry = {"name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest(), **limits}
    before = path.read_text() if path.exists() else ""
    lines = [f"{field} = {json.dumps(value)}" for field, value in entry.items()]
    text = "\n".join([*([before.rstrip("\n"), ""] if before else []), "[[keys]]", *lines, ""])
    fresh = path.with_name(f".{path.name}.new")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    try:
        read(fresh)
    except ValueError:
        fresh.unlink()
        raise
    fresh.replace(path)
    return secret
