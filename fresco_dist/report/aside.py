"""Files and folders that are whole or not there: written aside, flushed, renamed. Standard library only."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file or a folder of that name, which others see when it is whole.

    Raises OSError, also for a folder that is there and not empty.
    """
    partial = path.with_name(f".partial-{path.name}")
    _remove(partial)  # of a process that was killed
    try:
        write(partial)
        for name in [*partial.iterdir()] if partial.is_dir() else [partial]:
            with name.open("rb+") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
