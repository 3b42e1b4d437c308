"""The object that holds warm workers and animates pictures; a call is a run, as one of the command is."""

import io
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import RLock
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from fresco_dist.api.animation import Animation, read_done
from fresco_dist.api.pictures import with_files
from fresco_dist.api.progress_bar import ProgressBar
from fresco_dist.api.requests import request_of
from fresco_dist.config import InputError, expanded
from fresco_dist.jobs.caller import Caller
from fresco_dist.jobs.progress import Progress, nobody
from fresco_dist.settings.composing import compose_values, flat
from fresco_dist.settings.wording import in_words

if TYPE_CHECKING:
    from fresco_dist.jobs.job import Request, Result
    from fresco_dist.jobs.pool import Pool

AS_TEXT: dict[str, Any] = {"force_terminal": False, "force_jupyter": False}  # a console's, whatever is around it


class Animator:
    """Animates pictures on workers that stay warm between calls, until it is closed.

    >>> import fresco_dist
    >>> animate = fresco_dist.Animator("synthetic", cluster={"executor": "inprocess"}, progress=False)
    >>> clip = animate(picture, prompt="the water flows", seed=7, model={"forward_s": 0})
    >>> clip.frames.shape, clip.latents.shape, clip.path
    ((81, 64, 96, 3), (1, 4, 21, 8, 12), None)
    >>> animate.close()
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        path: str | Path | None = None,
        cluster: str | Mapping[str, Any] | None = None,
        config_dir: str | Path | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> None:
        """Settings of every call, under the names that the command has for them; nothing is loaded or started yet.

        model: one of conf/model/, null: the embedded one; path: its directory (`model.path`). cluster: one of
        conf/cluster/, or values (`{"num_workers": 2}`). config_dir: a folder with groups of your own. progress: a bar.
        settings: see `__call__`.
        """
        given = {"model": model, "model.path": path, "cluster": cluster}
        self._settings = _flat(settings | {name: value for name, value in given.items() if value is not None})
        self._config_dir = None if config_dir is None else expanded(config_dir)
        self._shows_progress = progress
        self._pool: Pool | None = None
        self._lock = RLock()  # a pool runs one graph at a time
        self._is_running = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and the Ray that was started for them; the next call starts new ones.

        Raises InputError in a callback of a call.
        """
        with self._lock:
            if self._is_running:
                raise InputError("an Animator must not be closed in its own callback. Raise an error to end the call.")
            pool, self._pool = self._pool, None
            if pool is not None:
                pool.close()

    def __call__(
        self,
        image: Any = None,
        *,
        folder: str | Path | None = None,
        callback: Callable[[Progress], object] | None = None,
        **settings: Any,
    ) -> Animation:
        """Animate a picture: a file, a PIL image or an array; None: the bundled one.

        folder: where the products of the run go, and what it would go on from if it ended early; None: nowhere.
        callback: is told after every tile how far it is, and shown a preview after every step, in the thread that
        calls. settings: keys of the command by the same names, `seed=7`, `fusion="fresco_spot"`, those of sections as
        mappings or dotted, `tiles={"overlap": 0.25}`, `**{"tiles.overlap": 0.25}`; a picture may be given for every
        key that names one. Notes and warnings come as Python's.

        Raises InputError for what is wrong in that, in one line, WorkerError for tasks that fail and workers that are
        lost, WriteError for a folder that cannot be written.

        >>> with fresco_dist.Animator("synthetic", cluster={"executor": "inprocess"}, progress=False) as animate:
        ...     try:
        ...         animate(picture, **{"sampler.num_steps": 0})
        ...     except fresco_dist.InputError as error:
        ...         print(error)
        sampler.num_steps must be in [1, 1000]; got 0. Try 6.
        """
        given = {} if image is None else {"image": image}
        (animation,) = self.together([given | {"folder": folder} | settings], callback=callback)
        return animation

    @overload
    def together(
        self,
        calls: Iterable[Mapping[str, Any]],
        *,
        callback: Callable[[Progress], object] | None = None,
        return_exceptions: Literal[False] = False,
    ) -> list[Animation]: ...

    @overload
    def together(
        self,
        calls: Iterable[Mapping[str, Any]],
        *,
        callback: Callable[[Progress], object] | None = None,
        return_exceptions: bool,
    ) -> list[Animation | Exception]: ...

    def together(
        self,
        calls: Iterable[Mapping[str, Any]],
        *,
        callback: Callable[[Progress], object] | None = None,
        return_exceptions: bool = False,
    ) -> list[Animation] | list[Animation | Exception]:
        """Several calls at once, each as its arguments: what they share is done once, and the workers stay busy.

        Returns an Animation for each. What is wrong in the settings of one is raised before any of them runs; what goes
        wrong later, as a picture that is not there, once all others have run: the first error. With
        `return_exceptions`, as in asyncio.gather, such an error stands in the place of its animation.

        >>> with fresco_dist.Animator("synthetic", cluster={"executor": "inprocess"}, progress=False) as animate:
        ...     calls = [{"image": picture, "seed": seed, "model.forward_s": 0} for seed in (1, 2)]
        ...     print(len(animate.together(calls)))
        2
        """
        if callback is not None and not callable(callback):
            raise InputError(f"callback must be a function of a Progress, or None; got {callback!r}.")
        with ExitStack() as passing, self._alone() as workers:
            home = Path(tempfile.mkdtemp(prefix="fresco_dist-"))
            passing.callback(shutil.rmtree, home, ignore_errors=True)
            results: dict[int, Result] = {}
            requests = [
                self._request(call, home / str(i), partial(results.__setitem__, i)) for i, call in enumerate(calls)
            ]
            if any(request.config.plan_only for request in requests):
                raise InputError(
                    "plan_only must be false in a call; got true. Use animate.plan(...), which returns the plan."
                )
            with ProgressBar(callback or nobody, shown=self._shows_progress) as bar:
                errors = _run(requests, workers, _Program(Console(quiet=True, **AS_TEXT), bar))
            failed = {i: _in_python(error) for i, error in enumerate(errors) if error is not None}
            if failed and not return_exceptions:
                raise failed[min(failed)]
            made: list[Animation] = []
            for i, request in enumerate(requests):
                if i in failed:
                    continue
                one = _animation(request, results.get(i))
                is_shared = any(one.frames is other.frames for other in made)
                made.append(replace(one, frames=one.frames.copy()) if is_shared else one)
            return [failed[i] if i in failed else made.pop(0) for i in range(len(requests))]

    def plan(self, image: Any = None, **settings: Any) -> str:
        """What a call would do, as `plan_only=true` prints it: windows, forwards, memory, how long it takes.

        >>> with fresco_dist.Animator("synthetic", cluster={"num_workers": 8}, progress=False) as animate:
        ...     print(animate.plan(picture).splitlines()[0])
        image     96 x 64 px
        """
        from fresco_dist.jobs.pool import Pool

        given = {} if image is None else {"image": image}
        told = io.StringIO()
        with tempfile.TemporaryDirectory(prefix="fresco_dist-") as passing, Pool() as pool:
            request = self._request(given | settings | {"plan_only": True}, Path(passing), None)
            (error,) = _run([request], pool, Caller(Console(file=told, **AS_TEXT)))
        if error is not None:
            raise _in_python(error)
        return told.getvalue()

    def run(self, requests: Sequence["Request"], caller: Caller) -> list[Exception | None]:
        """What commands call: see `jobs.run.run`, on this one's workers."""
        with self._alone() as workers:
            return _run(requests, workers, caller)

    @contextmanager
    def _alone(self) -> Iterator["Pool"]:
        """The workers, when no other thread's call has them; raises InputError in a callback of a call."""
        from fresco_dist.jobs.pool import Pool

        with self._lock:
            if self._is_running:
                raise InputError("an Animator must not be called in its own callback: it runs one call at a time.")
            self._pool, self._is_running = self._pool or Pool(), True
            try:
                yield self._pool
            finally:
                self._is_running = False

    def _request(self, call: Mapping[str, Any], passing: Path, take: Callable[["Result"], object] | None) -> "Request":
        """A run in the folder that is asked for, or in one that passes, where it need not store anything."""
        if not isinstance(call, Mapping):
            raise InputError(f"a call among several must be its arguments, {{'image': ...}}; got {call!r}.")
        given = self._settings | _flat(call)
        asked = given.pop("folder", None)
        if not isinstance(asked, str | Path | None) or asked == "" or "\0" in str(asked):
            raise InputError(f"folder must be a path, or None for none; got {asked!r}.")
        folder = passing if asked is None else expanded(asked).absolute()
        values = with_files(given, passing if given.get("plan_only") else folder)
        if asked is None and given.get("store.path") is None:
            values["store.enabled"] = False
        cfg = compose_values(values, self._config_dir)
        options = {"take": take, "writes": asked is not None, "given": frozenset(given)}
        try:
            return request_of(cfg, folder, None, _warn, **options)
        except OmegaConfBaseException as error:
            raise InputError(in_words(error)) from None


def _run(requests: Sequence["Request"], pool: "Pool", caller: Caller) -> list[Exception | None]:
    from fresco_dist.jobs.run import run  # pictures and Ray load when there is something to run

    return run(requests, pool, caller)


class _Program(Caller):
    """Reads no lines: notes and warnings are Python's."""

    def remark(self, kind: str, text: str) -> None:
        _warn(_renamed(text))


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted keys; raises InputError for one that is given in two ways."""
    values: dict[str, Any] = {}
    for key, value in flat(settings):
        if key in values:
            raise InputError(f"{key} must be given once; got {values[key]!r} and {value!r}.")
        values[key] = value
    return values


def _renamed(text: str) -> str:
    """The same, by the name that a call has for its run folder."""
    return text.replace("hydra.run.dir", "folder")


def _in_python(error: Exception) -> Exception:
    return InputError(_renamed(str(error))) if isinstance(error, InputError) else error


def _warn(text: str) -> None:
    """Where the package is called."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("fresco_dist."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def _animation(request: "Request", result: "Result | None") -> Animation:
    """What has come of a run now, or before."""
    frames, latents, figures = read_done(request.path) if result is None else result
    return Animation(frames, latents, figures, request.config.video.rate, request.path if request.writes else None)
