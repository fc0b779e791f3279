"""Where the files that the service serves by default are."""

from pathlib import Path

PACKAGED = Path(__file__).parent / "_data"
"""In an installed wheel: pyproject.toml puts them there."""
_PROJECT = Path(__file__).parents[1]
CHECKOUT = {"weights": _PROJECT / "weights", "lab": _PROJECT / "docs" / "lab"}


def default_directory(name: str) -> Path:
    """The directory of `weights` or of `lab`: the wheel's where this package is installed, else the checkout's.

    The wheel's comes first, because next to an installed package another project may have a directory `weights`.
    """
    packaged = PACKAGED / name
    return packaged if packaged.is_dir() else CHECKOUT[name]
