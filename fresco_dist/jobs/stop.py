"""Being asked to stop at the next task boundary, as SLURM does ahead of a time limit or a preemption.

A signal only takes note; the run asks after each finished task. What is half done is dropped, and what is committed
stands in the run folder.
"""

import os
import threading

EXIT_CODE = os.EX_TEMPFAIL  # 75, sysexits.h: "the user is invited to retry"

_requested = threading.Event()


class Preempted(KeyboardInterrupt):
    """The run stopped at a task boundary because it was asked to; no Exception, so that a sweep stops, too."""


def request(*_: object) -> None:
    """Ask the run of this process to stop; a signal handler."""
    _requested.set()


def stop_if_requested() -> None:
    """Raise Preempted if `request` has been called."""
    if _requested.is_set():
        raise Preempted("stopped at a task boundary, as asked by SIGUSR1")
