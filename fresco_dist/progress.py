"""The progress line: step, tiles done / total, tiles per second, time left. Live in a terminal, sparse in a log."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fresco_dist.trace import TaskRecord

LOG_INTERVAL_S = 10.0
TILE_KINDS = ("encode", "predict", "decode")


class ProgressLine:
    """One phase's progress. In a terminal it is redrawn; elsewhere it is a new line at most every 10 s and at the end.

    `unit` counts; records of other kinds only show that something happens.
    """

    def __init__(self, console: Console, phase: str, unit: str, total: int, num_steps: int = 0) -> None:
        self._console, self._phase, self._unit, self._total, self._num_steps = console, phase, unit, total, num_steps
        self._done, self._step = 0, 0
        self._start_s = self._last_s = time.monotonic()
        self._live = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._bar = self._live.add_task(phase, total=total, rate="waiting for the first tile")

    def __enter__(self) -> "ProgressLine":
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def __call__(self, record: TaskRecord) -> None:
        """Take note of a finished task."""
        if record.task.kind == "commit":
            self._step = record.task.step + 1
        if record.task.kind != self._unit:
            return
        now_s = time.monotonic()
        if self._done == 0:
            self._start_s = min(self._start_s, now_s) if self._total == 1 else now_s - (record.end_s - record.start_s)
        self._done += 1
        rate = self._done / max(1e-3, now_s - self._start_s)
        text = f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"
        text += f" tiles/s, {_duration((self._total - self._done) / rate)} left"
        phase = self._phase
        if self._num_steps:
            phase += f" step {min(self._step + 1, self._num_steps)}/{self._num_steps}"
        self._live.update(self._bar, completed=self._done, description=phase, rate=text)
        if not self._console.is_terminal and (now_s - self._last_s >= LOG_INTERVAL_S or self._done == self._total):
            self._last_s = now_s
            self._console.print(f"{phase}: tiles {self._done}/{self._total}, {text}", highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    """Seconds, minutes and seconds, or hours and minutes."""
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s" if minutes else f"{rest_s} s"
    return f"{minutes // 60} h {minutes % 60} min"
