"""The command line: `python -m fresco_dist.launch`. Owns what commands make of argv, signals and exit codes.

Turns a composed configuration into dataclasses, a run into an exit code, and what happens into lines for people.
Exit codes: 0 done; 2 the user's input is wrong, in one line; 1 anything else; 75 stopped at a task boundary on SIGUSR1;
129, 130 and 143 on SIGHUP, SIGINT and SIGTERM.
"""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from fresco_dist.api.animator import Animator
from fresco_dist.api.requests import request_of
from fresco_dist.config import InputError, require
from fresco_dist.jobs.caller import EXIT_CODE, Caller, Preempted
from fresco_dist.runtime.environment import OFFLINE, RAY, set_defaults
from fresco_dist.runtime.streams import keep_streams
from fresco_dist.settings.arguments import read_arguments
from fresco_dist.settings.schema import CONFIG_FOLDER, register
from fresco_dist.settings.wording import in_words

ENVIRONMENT = OFFLINE | RAY
SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
ONE_WISH_S = 1.0  # `timeout`, systemd and commands that pass signals on send more than one at once


_signals_received: list[tuple[int, float]] = []  # the one that ends the run, and when, in monotonic seconds
_asked_to_stop: list[int] = []  # by SIGUSR1; no Event, since submitit pickles what a job refers to
_told: set[Hashable] = set()  # what is said once for all points of a sweep
_sweep: list[Any] = []  # the points of a sweep whose configuration is in order (jobs.job.Request)


def _prepare_environment() -> None:
    """Nothing reaches out: no hub, no usage statistics, and a Ray of our own answers only to this run's token."""
    set_defaults(os.environ, ENVIRONMENT)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach main() instead of being printed by Hydra
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a sweep holds a lock per point


def _interrupt(signal_number: int, _: object) -> None:
    """All these signals end a run alike; one more, ONE_WISH_S or more after the first, cuts the end short.

    Then run.json may be missing. A Ray that was started here dies with this process in any case. Ray's waits let no
    other exception than KeyboardInterrupt through, and no argument of it.
    """
    if not _signals_received:
        _signals_received.append((signal_number, time.monotonic()))
        raise KeyboardInterrupt
    if time.monotonic() - _signals_received[0][1] >= ONE_WISH_S:
        os._exit(128 + signal_number)


class JobFailed(Exception):
    """One job of a sweep failed and has been reported; carries its exit code."""


@hydra.main(version_base="1.3", config_path=CONFIG_FOLDER, config_name="config")
def _job(cfg: DictConfig) -> None:
    """One run; as a point of a sweep on this machine, it is only noted, to be run together with the others.

    Errors are reported here, where Hydra cannot add lines; the other points of a sweep still run.
    """
    hydra_config = HydraConfig.get()
    back_to_start()
    try:
        request = _request(cfg)
        if hydra_config.mode is RunMode.MULTIRUN and _is_here(hydra_config):
            _sweep.append(request)
            return
        (error,) = run_requests([request])
        if error is not None:
            raise error
    except Exception as error:
        exit_code = report_error(error)
        if hydra_config.mode is RunMode.MULTIRUN:
            raise JobFailed(exit_code) from None
        raise SystemExit(exit_code) from None


def back_to_start() -> None:
    """With hydra.job.chdir, the paths that were typed still lie where the command was started."""
    hydra_config = HydraConfig.get()
    if hydra_config.job.chdir:
        os.chdir(hydra_config.runtime.cwd)


def _is_here(hydra_config: Any) -> bool:
    """Whether the points of a sweep are runs of this process."""
    return hydra_config.launcher._target_.endswith(".BasicLauncher")


def _request(cfg: DictConfig) -> Any:
    """The run that is asked for; raises InputError or what Hydra complains of."""
    hydra_config = HydraConfig.get()
    is_point = hydra_config.mode is RunMode.MULTIRUN
    folder = Path(hydra_config.runtime.output_dir)
    sweep = Path(hydra_config.sweep.dir).absolute() if is_point else None
    if sweep is not None:
        key, subdir = "hydra.sweep.subdir", hydra_config.sweep.subdir
        below = Path(os.path.abspath(folder)).is_relative_to(os.path.abspath(sweep))
        require(below, key, subdir, f"a folder below {sweep}, the sweep's", "A relative path without .. is one.")
    shares_store = is_point and not _is_here(hydra_config)
    given = frozenset(override.partition("=")[0].lstrip("+~") for override in hydra_config.overrides.task)
    return request_of(cfg, folder, sweep, caller().note, shares_store=shares_store, given=given)


def caller() -> Caller:
    """Who has typed the command, and SIGUSR1."""
    return Caller(Console(stderr=False), should_stop=lambda: bool(_asked_to_stop), told=_told)


def run_requests(requests: list[Any], animate: Animator | None = None) -> list[Exception | None]:
    """Run on the workers that somebody has, or on some that end with the command; the error of each that failed."""
    from fresco_dist.jobs.terminal import shows_previews

    who = caller()
    if len(requests) == 1:
        who = replace(who, listener=shows_previews(who.console, os.environ))
    errors: list[Exception | None] = []
    try:
        with Animator() if animate is None else nullcontext(animate) as workers:
            errors = workers.run(requests, who)
    finally:
        has_ended_early = not errors or any(error and not isinstance(error, InputError) for error in errors)
        if has_ended_early and any(_is_stored(request) for request in requests):
            who.say(f"stored    the same command with {requests[0].typed} goes on")
        for request in requests:
            if request.config.plan_only:
                with suppress(OSError):  # something is in it
                    request.path.rmdir()  # which Hydra has made
    return errors


def _is_stored(request: Any) -> bool:
    """Whether there is something that a run goes on from."""
    path = request.store_path
    return path is not None and not request.config.store.path and path.is_dir() and any(path.iterdir())


def _run_sweep() -> int:
    """The points of a sweep together, then the report of what is done; returns the first error's exit code."""
    errors = run_requests(_sweep)
    exit_codes = [0 if error is None else report_error(error) for error in errors]
    if 0 in exit_codes and not _sweep[0].config.plan_only:
        exit_codes.append(write_report(_sweep[0].home))
    return next(filter(None, exit_codes), 0)


def write_report(sweep_folder: Path) -> int:
    """The report of a sweep; returns its exit code."""
    from fresco_dist import report
    from fresco_dist.jobs.folder import WriteError

    try:
        folder = report.write(sweep_folder)
    except OSError as error:
        return report_error(WriteError("report", sweep_folder, error))
    caller().say(f"report    {folder}")
    return 0


def report_error(error: Exception) -> int:
    """Print an error as one line on stderr, after a traceback if it is a defect; returns the exit code."""
    if isinstance(error, (InputError, HydraException, OmegaConfBaseException)):
        print(f"error: {in_words(error)}", file=sys.stderr)
        return 2
    from fresco_dist.jobs.folder import WriteError
    from fresco_dist.schedule.execute import WorkerError

    if not isinstance(error, (WorkerError, WriteError)):
        traceback.print_exception(error)
    elif isinstance(error, WorkerError) and error.remote_traceback:
        print(error.remote_traceback, file=sys.stderr)
    print(f"error: {in_words(error)}", file=sys.stderr)
    return 1


def main() -> int:
    """Run the command line; returns the exit code."""
    register()
    return run_command(_run)


def run_command(command: Callable[[], int]) -> int:
    """Run a command that Hydra composes, with what all of them promise of signals and errors; returns the exit code."""
    keep_streams()
    _prepare_environment()
    _sweep.clear()
    _told.clear()
    _signals_received.clear()
    _asked_to_stop.clear()
    for signal_number in SIGNALS:
        if signal_number != signal.SIGHUP or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as by nohup
            signal.signal(signal_number, _interrupt)
    signal.signal(signal.SIGUSR1, lambda number, _: _asked_to_stop.append(number))
    try:
        return command()
    except HydraException as error:
        return report_error(error)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except Preempted as preempted:
        print(preempted, file=sys.stderr)
        return EXIT_CODE
    except KeyboardInterrupt:
        received = _signals_received[0][0] if _signals_received else signal.SIGINT
        print(SIGNALS[signal.Signals(received)], file=sys.stderr)
        return 128 + received
    except Exception as error:
        return report_error(error)


def compose(job: Callable[[], object], *, defaults: Sequence[str] = (), picture_key: str = "image") -> None:
    """Have Hydra compose what was typed, after a command's own defaults, and run.

    Raises InputError if what was typed makes no sense (see `read_arguments`), it cannot make the folder, or is in none.
    """
    try:
        os.getcwd()
        flags, overrides = read_arguments(sys.argv[1:], picture_key=picture_key)
        sys.argv[1:] = [*flags, *defaults, *overrides]
        job()
    except OSError as error:  # a run's own are reported there
        if isinstance(error, HydraException):
            raise
        if isinstance(error, FileNotFoundError) and error.filename is None:
            raise InputError("The folder in which the command was started is gone. Start it in another one.") from None
        key, got = "hydra.run.dir (hydra.sweep.dir with -m)", error.filename or "this one"
        raise InputError(f"{key} must be a folder that can be written; got {got} ({error.strerror}).") from None


def _run() -> int:
    """The run, or all points of the sweep."""
    exit_code = 0
    try:
        compose(_job)
    except JobFailed as failure:
        exit_code = failure.args[0]
    return (_run_sweep() if _sweep else 0) or exit_code


if __name__ == "__main__":
    sys.exit(main())
