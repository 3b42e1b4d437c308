"""Processes as the system sees them: what is below one, which of them are workers, and whether they live."""

import time
from pathlib import Path

import pytest

DEADLINE_S = 120.0


def descendants(pid: int) -> set[int]:
    """Process ids below `pid`."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        parents[int(status.parent.name)] = int(fields[1])
    found, frontier = set(), {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found


def actors(pid: int) -> list[int]:
    """Worker actors below `pid`."""
    found = []
    for child in descendants(pid):
        try:
            if b"ray::WorkerActor" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
        except OSError:
            continue
    return found


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is not only waiting to be asked how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, what: str, deadline_s: float = DEADLINE_S):
    """The first result of `condition` that is true."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.1)
    pytest.fail(f"no {what} within {deadline_s} s")
