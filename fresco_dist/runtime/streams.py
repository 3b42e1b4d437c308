"""stdin, stdout and stderr of a command, such that its products do not depend on whether anybody reads along.

A pipe whose reader has left, a terminal that is gone and a full device take what is said to nowhere. Letters that the
encoding lacks are escaped.
"""

import io
import os
import select
import sys
from typing import Any


class LastingFile(io.FileIO):
    """A file that is written to for as long as that works, and is /dev/null afterwards, for child processes as well."""

    def write(self, data: Any) -> int:
        """All of it counts as written."""
        left = memoryview(data).cast("B")
        try:
            while left:
                written = super().write(left)
                if written is None:  # a pipe that does not block is full
                    select.select([], [self], [])
                left = left[written or 0 :]
        except OSError:
            _replace(self.fileno())
        return memoryview(data).nbytes


def keep_streams() -> None:
    """Make those of this process last; ones that something else stands for, as in a notebook, stay as they are."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed: the next file to be opened would have its number, and get what libraries print
            _replace(number)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
        elif mode == "w" and stream is getattr(sys, f"__{name}__"):
            stream.flush()
            raw = LastingFile(stream.fileno(), mode, closefd=False)
            ways = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            buffer = raw if stream.write_through else io.BufferedWriter(raw)  # the former with PYTHONUNBUFFERED
            setattr(sys, name, io.TextIOWrapper(buffer, stream.encoding, errors="backslashreplace", **ways))


def _replace(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
