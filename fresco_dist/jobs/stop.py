"""Being asked to stop at the next task boundary, as SLURM does ahead of a time limit or a preemption.

A run asks `should_stop` after each finished task. What is half done is dropped, and what is committed stands in the
run folder.
"""

import os
from collections.abc import Callable

EXIT_CODE = os.EX_TEMPFAIL  # 75, sysexits.h: "the user is invited to retry"

ShouldStop = Callable[[], bool]


class Preempted(KeyboardInterrupt):
    """The run stopped at a task boundary because it was asked to; no Exception, so that a sweep stops, too."""


def never() -> bool:
    """Of a run that nobody asks to stop."""
    return False
