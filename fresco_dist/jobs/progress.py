"""How far runs are, for who listens, and as a line: step, tiles done / total, tiles per second, time left.

The line is live in a terminal, sparse in a log.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from rich import progress as bars
from rich.console import Console

from fresco_dist.schedule.trace import TaskRecord

LOG_INTERVAL_S = 10.0


@dataclass(frozen=True)
class Progress:
    """Something is done: `done` of `total` tiles of a phase ("encode", "denoise" or "decode") of runs that go together.

    `step` of `num_steps`, counted from 1, while they denoise. At the end of a step of the `run`-th run `preview` is how
    its clip would look: uint8 (3, h, w, 3), its first, middle and last latent frame, small; fewer of a clip of fewer.
    Until the video's first step, 0 then, ends, they are those of what it is made from.

    >>> import fresco_dist
    >>> fresco_dist.Progress("denoise", done=30, total=150, step=2, num_steps=6).step
    2
    """

    phase: str
    done: int
    total: int
    step: int = 0
    num_steps: int = 0
    preview: np.ndarray | None = None
    run: int = 0


Listener = Callable[[Progress], object]


def nobody(progress: Progress) -> None:
    """Of runs that nobody listens to."""


@dataclass
class Phase:
    """Tasks of one kind that are counted together; `num_steps` > 0 shows the denoising step.

    `start_s` is when the first of them began: what came before is no measure of the others.
    """

    name: str
    total: int
    num_steps: int = 0
    done: int = 0
    start_s: float = 0.0
    printed_s: float = 0.0


class ProgressLine:
    """Where the run is: the phase of the last finished tile. `phases` are keyed by task kind; other kinds are not told.

    In a terminal the line is redrawn; elsewhere it is a new line at most every 10 s and at the end of a phase.
    """

    def __init__(self, console: Console, phases: Mapping[str, Phase], listener: Listener = nobody) -> None:
        self._console, self._phases, self._listener = console, phases, listener
        self._begun_s = time.monotonic()
        self._live = bars.Progress(
            bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[rate]}"),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        first = next(iter(phases.values()))
        self._bar = self._live.add_task(first.name, total=first.total, rate="waiting for the first tile")

    def __enter__(self) -> "ProgressLine":
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def __call__(self, record: TaskRecord) -> None:
        """Take note of a finished task."""
        if record.task.kind not in self._phases:
            return
        phase, now_s = self._phases[record.task.kind], time.monotonic()
        if phase.done == 0:
            phase.start_s, phase.printed_s = now_s - (record.end_s - record.start_s), self._begun_s
        phase.done += 1
        step = record.task.step + 1 if phase.num_steps else 0
        self._listener(Progress(phase.name, phase.done, phase.total, step, phase.num_steps))
        name, text = phase.name, ""
        if phase.done > 1:
            rate = phase.done / max(1e-3, now_s - phase.start_s)
            text = f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"
            text += f" tiles/s, {_duration((phase.total - phase.done) / rate)} left"
        if phase.num_steps:
            name += f" step {step}/{phase.num_steps}"
        self._live.update(self._bar, total=phase.total, completed=phase.done, description=name, rate=text)
        is_due = now_s - phase.printed_s >= LOG_INTERVAL_S or phase.done == phase.total
        if is_due and not self._console.is_terminal:
            phase.printed_s = now_s
            line = ", ".join(filter(None, (f"{name}: tiles {phase.done}/{phase.total}", text)))
            self._console.print(line, highlight=False, soft_wrap=True)

    def show(self, frames: np.ndarray, step: int, run: int) -> None:
        """Hand on how a run would look after a step; see Progress."""
        phase = self._phases["predict"]
        self._listener(Progress(phase.name, phase.done, phase.total, step, phase.num_steps, frames, run))


def _duration(seconds: float) -> str:
    """Seconds, minutes and seconds, or hours and minutes."""
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s" if minutes else f"{rest_s} s"
    return f"{minutes // 60} h {minutes % 60} min"
