"""A bar for each phase of a run, in a terminal or a notebook, as diffusers' pipelines show one."""

from typing import Any, Self

from fresco_dist.jobs.progress import Listener, Progress


class ProgressBar:
    """Shows what it is told, and tells it on to `listener`."""

    def __init__(self, listener: Listener, *, shown: bool) -> None:
        self._listener, self._shown = listener, shown
        self._bars: dict[str, Any] = {}  # of the phases that have begun: several may be at work

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for bar in self._bars.values():
            bar.close()

    def __call__(self, progress: Progress) -> None:
        """Something is done."""
        if self._shown and progress.preview is None:
            self._show(progress)
        self._listener(progress)

    def _show(self, progress: Progress) -> None:
        if progress.phase not in self._bars:
            from tqdm.auto import tqdm

            self._bars[progress.phase] = tqdm(total=progress.total, desc=progress.phase, unit="tile")
        bar = self._bars[progress.phase]
        if progress.num_steps:
            bar.set_postfix_str(f"step {progress.step}/{progress.num_steps}", refresh=False)
        bar.update(progress.done - bar.n)
