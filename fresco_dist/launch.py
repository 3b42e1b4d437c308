"""The command line: `python -m fresco_dist.launch`. The only module that sees argv, the environment and signals.

Turns a composed configuration into dataclasses, a run into an exit code, and what happens into lines for people.
Exit codes: 0 done; 2 the user's input is wrong, in one line; 1 anything else; 75 stopped at a task boundary on SIGUSR1;
129, 130 and 143 on SIGHUP, SIGINT and SIGTERM.
"""

import os
import resource
import secrets
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import field, fields, is_dataclass, make_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from rich.console import Console

import fresco_dist.conf
from fresco_dist.config import Config, InputError, RegionConfig, require
from fresco_dist.jobs.stop import EXIT_CODE, Preempted
from fresco_dist.method.recipes import RECIPES
from fresco_dist.runtime.authentication import require_token

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "SVT_LOG": "1",  # of AV1's encoder, errors alone
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of several workers that fail together, one is reported
}
SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
ONE_WISH_S = 1.0  # `timeout`, systemd and commands that pass signals on send more than one at once
NO_LIST = ("is not a ListConfig", "Cannot merge DictConfig with ListConfig")  # what OmegaConf says then
QUOTING = """A text with commas or brackets needs quotes inside quotes: 'KEY="TEXT"'; a list is KEY=[A,B]."""
CONFIG_FOLDER = str(Path(fresco_dist.conf.__file__).parent)


_signals_received: list[tuple[int, float]] = []  # the one that ends the run, and when, in monotonic seconds
_asked_to_stop: list[int] = []  # by SIGUSR1; no Event, since submitit pickles what a job refers to
_said: list[str] = []  # of what has no effect; once for all points of a sweep
_sweep: list[Any] = []  # the points of a sweep whose configuration is in order (jobs.job.Request)


def _prepare_environment() -> None:
    """Nothing reaches out: no hub, no usage statistics, and a Ray of our own answers only to this run's token."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach main() instead of being printed by Hydra
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a sweep holds a lock per point


def _interrupt(signal_number: int, _: object) -> None:
    """All these signals end a run alike; one more, ONE_WISH_S or more after the first, cuts the end short.

    Then run.json may be missing. A Ray that was started here dies with this process in any case. Ray's waits let no
    other exception than KeyboardInterrupt through, and no argument of it.
    """
    if signal_number == signal.SIGHUP:
        _mute_terminal()
    if not _signals_received:
        _signals_received.append((signal_number, time.monotonic()))
        raise KeyboardInterrupt
    if time.monotonic() - _signals_received[0][1] >= ONE_WISH_S:
        os._exit(128 + signal_number)


def _mute_terminal() -> None:
    """Where the terminal is gone, whatever is still said would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for said_to in (1, 2):
        if stat.S_ISCHR(os.fstat(said_to).st_mode):
            os.dup2(nowhere, said_to)
    os.close(nowhere)


class JobFailed(Exception):
    """One job of a sweep failed and has been reported; carries its exit code."""


@hydra.main(version_base="1.3", config_path=CONFIG_FOLDER, config_name="config")
def _job(cfg: DictConfig) -> None:
    """One run; as a point of a sweep on this machine, it is only noted, to be run together with the others.

    Errors are reported here, where Hydra cannot add lines; the other points of a sweep still run.
    """
    hydra_config = HydraConfig.get()
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


def _is_here(hydra_config: Any) -> bool:
    """Whether the points of a sweep are runs of this process."""
    return hydra_config.launcher._target_.endswith(".BasicLauncher")


def _request(cfg: DictConfig) -> Any:
    """The run that is asked for; raises InputError or what Hydra complains of."""
    hydra_config = HydraConfig.get()
    is_point = hydra_config.mode is RunMode.MULTIRUN
    sweep = Path(hydra_config.sweep.dir).absolute() if is_point else None
    shares_store = is_point and not _is_here(hydra_config)
    return request_of(cfg, Path(hydra_config.runtime.output_dir), sweep, shares_store=shares_store)


def request_of(cfg: DictConfig, folder: Path, home: Path | None, *, shares_store: bool = False) -> Any:
    """A run, from what Hydra has composed (see `jobs.job.Request`); raises InputError or what OmegaConf complains of.

    What has no effect is said.
    """
    checked, idle = checked_config(cfg)
    config, plain = OmegaConf.to_object(checked), plain_values(checked)
    for text in idle:
        if text not in _said:
            _said.append(text)
            say(f"note      {text}")
    if config.cluster.address is None:  # a new token for every Ray started here; it is written nowhere
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    else:
        require_token(os.environ)
    from fresco_dist.jobs.run import Request  # pictures and Ray load only when the command line is in order

    return Request(config, plain, folder, home, shares_store=shares_store)


def plain_values(checked: DictConfig) -> dict[str, Any]:
    """As run.json has them."""
    return OmegaConf.to_container(checked, resolve=True, enum_to_str=True)


def stop_if_asked() -> None:
    """Raise Preempted if SIGUSR1 has come; runs look for themselves."""
    if _asked_to_stop:
        raise Preempted("stopped at a task boundary, as asked by SIGUSR1")


def say(text: str) -> None:
    """One line for people."""
    Console(stderr=False).print(text, highlight=False, markup=False, soft_wrap=True)


def register(more: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Tell Hydra of the configuration's schema, in which `fusion` has the keys of all recipes and `regions` any value.

    So one command line may choose among them; see `checked_config`. `more` are keys of another command, with values.
    """
    fusion = make_dataclass("Fusion", [(name, Any, None) for name in sorted(_all_names())])
    others = [(name, Any, field(default=value)) for name, value in more.items()]
    schema = make_dataclass("Schema", [("fusion", fusion), ("regions", Any), *others], bases=(Config,))
    ConfigStore.instance().store(name="config_schema", node=schema)


def checked_config(cfg: DictConfig) -> tuple[DictConfig, list[str]]:
    """What Hydra has composed, with the types of the chosen recipe and of that the keys alone; and what is left out.

    Raises InputError or what OmegaConf complains of: also for keys that were added with +.
    """
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    given = {name: value for name, value in plain["fusion"].items() if value is not None}
    method = given.get("method")
    known = isinstance(method, str) and method in RECIPES
    require(known, "fusion.method", method, f"one of {', '.join(RECIPES)}", "Use fusion=NAME.")
    others = _all_names() - _names(RECIPES[method])
    idle = [f"fusion.{name} has no effect with fusion={method}" for name in given if name in others]
    schema = OmegaConf.structured(Config)
    schema.fusion = RECIPES[method]
    plain["fusion"] = {name: value for name, value in given.items() if name not in others}
    plain["regions"] = _read_regions(plain["regions"])
    return OmegaConf.merge(schema, literal(plain)), idle


def literal(value: Any) -> Any:
    """The same, with nothing in it for OmegaConf to resolve once more."""
    if isinstance(value, dict):
        return {key: literal(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [literal(entry) for entry in value]
    return value.replace("${", r"\${") if isinstance(value, str) else value


def compose_config(*overrides: str) -> Config:
    """The configuration of a command line with these overrides; raises InputError, or what Hydra complains of."""
    register()
    with hydra.initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        checked, _ = checked_config(hydra.compose("config", list(overrides)))
    return OmegaConf.to_object(checked)


def _read_regions(given: Any) -> list[dict[str, Any]]:
    """The list that is given, or that a YAML file holds, whose masks lie relative to it; raises InputError."""
    regions = _read_yaml("regions", Path(given).expanduser()) if isinstance(given, str) else given
    is_list = isinstance(regions, list) and all(isinstance(region, dict) for region in regions)
    allowed = "a list of {prompt: TEXT, mask: FILE} and {prompt: TEXT, box: [left, top, right, bottom]}"
    require(is_list, "regions", given, f"{allowed}, or a YAML file with one", "[] is one prompt for all.")
    if isinstance(given, str):
        folder = Path(given).expanduser().absolute().parent
        for region in (region for region in regions if isinstance(region.get("mask"), str) and region["mask"]):
            region["mask"] = str(folder / Path(region["mask"]).expanduser())
    for i, region in enumerate(regions):
        try:
            OmegaConf.merge(OmegaConf.structured(RegionConfig), literal(region))
        except OmegaConfBaseException as error:  # it does not know where in the list it is
            raise InputError(f"regions[{i}].{_explain(error)}") from None
    return regions


def _read_yaml(key: str, path: Path) -> Any:
    """What a YAML file holds; raises InputError."""
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{key}: {path} cannot be read: {error.strerror}. Check the path.") from None
    except (yaml.YAMLError, ValueError) as error:  # of a date that is none, or of what is no text
        raise InputError(f"{key}: {path} is not YAML: {error}. Try '- {{prompt: TEXT, mask: FILE}}'.") from None


def run_requests(requests: list[Any], pool: Any = None) -> list[Exception | None]:
    """Run on the workers of a pool, or on some that end with the command; the error of each that failed."""
    from fresco_dist.jobs.pool import Pool
    from fresco_dist.jobs.run import run

    with Pool() if pool is None else nullcontext(pool) as workers:
        return run(requests, workers, Console(stderr=False), should_stop=lambda: bool(_asked_to_stop))


def _run_sweep() -> int:
    """The points of a sweep together, then the report of what is done; returns the first error's exit code."""
    errors = run_requests(_sweep)
    exit_codes = [0 if error is None else report_error(error) for error in errors]
    if 0 in exit_codes and not _sweep[0].config.plan_only:
        exit_codes.append(write_report(_sweep[0].path.parent))
    return next(filter(None, exit_codes), 0)


def write_report(sweep_folder: Path) -> int:
    """The report of a sweep; returns its exit code."""
    from fresco_dist import report
    from fresco_dist.jobs.folder import WriteError

    try:
        folder = report.write(sweep_folder)
    except OSError as error:
        return report_error(WriteError("report", sweep_folder, error))
    say(f"report    {folder}")
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


def in_words(error: Exception) -> str:
    """An error in one line."""
    is_input = isinstance(error, (InputError, HydraException, OmegaConfBaseException))
    return " ".join((_explain(error) if is_input else str(error)).split())


def _explain(error: Exception) -> str:
    """What Hydra and OmegaConf complain of, said as our own checks say it: key, value, what is allowed."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"{group} must be one of {', '.join(error.options)}; got {name}."
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        near = get_close_matches(cause.full_key, keys(), n=1)
        return f"{cause.full_key}: there is no such key." + (f" Did you mean {near[0]}?" if near else "")
    if isinstance(cause, MissingMandatoryValue):
        key = str(cause.full_key).partition("[")[0]  # of a list, all entries are given together
        return f"{key} must be given: it has no default here. Add {key}=VALUE."
    text = str(error)
    if isinstance(cause, OmegaConfBaseException):
        override = text.removeprefix("Error merging override ") if cause is not error else cause.full_key
        if any(part in str(cause) for part in NO_LIST):
            key, _, value = override.partition("=")
            return f"{key} must be a list, {key}=[A,B]; got {value or 'something else'}."
        return f"{override}: {str(cause).splitlines()[0].rstrip('.')}."
    if isinstance(error, OverrideParseException):
        hint = QUOTING if "=" in error.override else 'A text with spaces needs quotes: KEY="A TEXT".'
        return f"{error.override}: {text.splitlines()[0]}. {hint}"
    if text.startswith("Ambiguous value"):
        return f"{text.splitlines()[0]}: commas make a sweep, with -m. {QUOTING}"
    return text.partition("Config search path")[0]


def _names(schema: type) -> set[str]:
    return {key.name for key in fields(schema)}


def _all_names() -> set[str]:
    """The keys of all recipes."""
    return set().union(*map(_names, RECIPES.values()))


def keys() -> list[str]:
    """Every key of the configuration, dotted, those of all recipes included."""

    def of(schema: type, prefix: str) -> Iterator[str]:
        for key in fields(schema):
            yield prefix + key.name
            if is_dataclass(key.type):
                yield from of(key.type, f"{prefix}{key.name}.")

    of_recipes = (key for recipe in RECIPES.values() for key in of(recipe, "fusion."))
    return list(dict.fromkeys([*of(Config, ""), *of_recipes]))


def main() -> int:
    """Run the command line; returns the exit code."""
    register()
    return run_command(_run)


def run_command(command: Callable[[], int]) -> int:
    """Run a command that Hydra composes, with what all of them promise of signals and errors; returns the exit code."""
    _prepare_environment()
    _sweep.clear()
    _said.clear()
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
        signal_number = _signals_received[0][0] if _signals_received else signal.SIGINT
        print(SIGNALS[signal_number], file=sys.stderr)
        return 128 + signal_number
    except Exception as error:
        return report_error(error)


def compose(job: Callable[[], object]) -> None:
    """Have Hydra compose what was typed, and run; raises InputError if it cannot make the folder."""
    try:
        job()
    except OSError as error:  # a run's own are reported there
        if isinstance(error, HydraException):
            raise
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
