"""Files that are whole or not there: written aside, flushed, renamed. Standard library only."""

import os
from collections.abc import Callable
from pathlib import Path


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file of that name, which others see when it is whole. Raises OSError."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
