"""How the commands of this folder end."""

import sys
from collections.abc import Callable

from fresco_dist.config import InputError
from fresco_dist.runtime.streams import keep_streams


def exit_code(action: Callable[[], object], written: str) -> int:
    """Run it: 0; 2 for bad input, and 1 where `written`, the name of what it writes, cannot be: told in one line."""
    keep_streams()
    try:
        action()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {written} cannot be written: {error}", file=sys.stderr)
        return 1
    return 0
