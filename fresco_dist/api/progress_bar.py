"""A bar for each phase of a run, in a terminal or a notebook, as diffusers' pipelines show one."""

from typing import Any, Self

from fresco_dist.jobs.progress import Listener, Progress


class ProgressBar:
    """Shows what it is told, and tells it on to `listener`."""

    def __init__(self, listener: Listener, *, shown: bool) -> None:
        self._listener, self._shown = listener, shown
        self._bar: Any = None
        self._phase = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def __call__(self, progress: Progress) -> None:
        """Something is done."""
        if self._shown and progress.preview is None:
            self._show(progress)
        self._listener(progress)

    def _show(self, progress: Progress) -> None:
        if progress.phase != self._phase:
            from tqdm.auto import tqdm

            self._end()
            self._bar, self._phase = tqdm(total=progress.total, desc=progress.phase, unit="tile"), progress.phase
        if progress.num_steps:
            self._bar.set_postfix_str(f"step {progress.step}/{progress.num_steps}", refresh=False)
        self._bar.update(progress.done - self._bar.n)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._phase = None, ""
