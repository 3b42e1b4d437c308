"""Where a path that was given leads."""

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """With `~` as the home folder; of a user whom nobody knows it is a part of the name."""
    return Path(os.path.expanduser(path))
