"""Who has runs done, a person or a program: hears of them, and may ask them to stop.

Being asked to stop is what SLURM does ahead of a time limit or a preemption: at the next task boundary. What is half
done is dropped, and what is committed stands in the run folder.
"""

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

from rich.console import Console

from fresco_dist.jobs.progress import Listener, Progress, nobody

EXIT_CODE = os.EX_TEMPFAIL  # 75, sysexits.h: "the user is invited to retry"


class Preempted(KeyboardInterrupt):
    """The run stopped at a task boundary because it was asked to; no Exception, so that a sweep stops, too."""


def never() -> bool:
    """Of runs that nobody asks to stop."""
    return False


@dataclass(frozen=True)
class Caller:
    """Reads lines on `console`; `listener` is told how far runs are; `should_stop` is asked after each finished task.

    `told` is what is not said again.
    """

    console: Console
    listener: Listener = nobody
    should_stop: Callable[[], bool] = never
    told: set[Hashable] = field(default_factory=set)

    def say(self, *lines: str) -> None:
        """For people, as it is."""
        for line in lines:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """What is odd, or has no effect; once."""
        if text not in self.told:
            self.told.add(text)
            self.remark("note", text)

    def warn(self, text: str) -> None:
        """What went wrong, though the run goes on."""
        self.remark("warning", text)

    def remark(self, kind: str, text: str) -> None:
        """A line that is no part of what was asked for."""
        self.say(f"{kind:<10}{text}")

    def of(self, runs: Sequence[int]) -> "Caller":
        """Of these runs among others: what is told of the first of them is told of number runs[0]."""

        def listener(progress: Progress) -> None:
            self.listener(replace(progress, run=runs[progress.run]))

        return replace(self, listener=listener)

    def stop_if_asked(self) -> None:
        """Raise Preempted if so."""
        if self.should_stop():
            raise Preempted("stopped at a task boundary, as asked by SIGUSR1")
