"""The command: `python -m fresco_dist.evaluate dataset=FOLDER compare=NAME hydra.sweep.dir=OUT`.

Runs every method of a comparison on every picture of a data set, into OUT/METHOD/PICTURE, and writes what they come to
into OUT/report. Keys, signals and exit codes are those of `fresco_dist.launch`; typed again, it does what is missing.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fresco_dist import launch
from fresco_dist.api.animator import Animator
from fresco_dist.api.requests import request_of
from fresco_dist.config import InputError, expanded, require
from fresco_dist.evaluate.dataset import Dataset, Picture, read_dataset
from fresco_dist.evaluate.methods import (
    KEYS,
    MAP,
    Methods,
    compose_methods,
    keys_compared,
    on_picture,
    read_methods,
    takes_map,
)
from fresco_dist.report.aside import write_aside
from fresco_dist.report.comparison import MANIFEST
from fresco_dist.settings.arguments import asks_for_sweep, split_flags
from fresco_dist.settings.schema import checked_config, plain_values, register
from fresco_dist.settings.wording import in_words

OURS = ["metrics=true", "hydra.run.dir=${hydra.sweep.dir}"]  # defaults of this command
RUNS_TOGETHER = 64  # about: pictures and tasks of more at once would fill the memory
REPORT_INTERVAL_S = 300.0  # between two reports on the way


@hydra.main(version_base="1.3", config_path=launch.CONFIG_FOLDER, config_name="config")
def _job(cfg: DictConfig) -> None:
    """All of it; errors are reported here, where Hydra cannot add lines."""
    launch.back_to_start()
    try:
        exit_code = _evaluate(cfg)
    except Exception as error:
        exit_code = launch.report_error(error)
    raise SystemExit(exit_code)


def _evaluate(cfg: DictConfig) -> int:
    """Read what is asked for, and run it; returns the exit code."""
    from fresco_dist.jobs.claim import Claim

    hydra_config = HydraConfig.get()
    allowed = "a folder of pictures with metadata.jsonl or .csv, or with a .txt each"
    require(bool(cfg.dataset), "dataset", cfg.dataset or "nothing", allowed, "Give dataset=FOLDER.")
    methods, folder = read_methods(cfg.compare, cfg.reference), Path(hydra_config.runtime.output_dir)
    try:
        claim = nullcontext() if cfg.plan_only else Claim(folder)
    except OSError as error:
        reason = f"a folder that can be written; got {folder} ({error.strerror})"
        raise InputError(f"hydra.sweep.dir must be {reason}. Give another one.") from None
    with claim:
        dataset = read_dataset(Path(hydra_config.runtime.cwd) / expanded(cfg.dataset))
        given = OmegaConf.to_container(hydra_config.overrides.task)  # as typed: ${...} is of each run
        common = [text for text in given if text.partition("=")[0].lstrip("+~") not in KEYS]
        return Evaluation(folder, dataset, methods, common, cfg).run()


class Evaluation:
    """Methods on pictures, and what has come of them so far."""

    def __init__(
        self, folder: Path, dataset: Dataset, methods: Methods, common: Sequence[str], cfg: DictConfig
    ) -> None:
        self._folder, self._dataset, self._methods, self._cfg = folder, dataset, methods, cfg
        self._configs = compose_methods(methods, common)
        self._left_out, self._reference = dict(dataset.left_out), methods.reference
        self._caller, self._exit_code = launch.caller(), 0
        self._num_done = 0  # runs
        self._said: set[tuple[str, str]] = set()  # reasons, by picture

    def run(self) -> int:
        """All pictures, some at a time, on one pool; returns the exit code."""
        self._check()
        if not self._cfg.plan_only:
            self._write_manifest()
        pictures, num_seen, reported_s = self._dataset.pictures, 0, time.monotonic()
        with Animator() as animate:
            for part in self._parts():
                self._caller.stop_if_asked()
                errors = self._run_part(part, animate)
                num_seen += len(part)
                if self._cfg.plan_only:
                    continue
                self._caller.say(f"pictures  {num_seen} of {len(pictures)}")
                self._write_manifest()
                if errors and all(error and not isinstance(error, InputError) for error in errors):
                    self._caller.warn("nothing of these could be run: the others are not tried")
                    break
                if num_seen < len(pictures) and time.monotonic() > reported_s + REPORT_INTERVAL_S:
                    reported_s = time.monotonic()
                    self._report()
        if not self._cfg.plan_only:
            self._report()
            self._clear_store()
        return self._exit_code

    def _check(self) -> None:
        """Say what there is, and leave out methods for which there is nothing. Raises InputError."""
        pictures = self._dataset.pictures
        for key in sorted(keys_compared(self._methods) & {key for picture in pictures for key in picture.settings}):
            raise InputError(f"dataset: its column {key} sets what the methods are compared by. Remove that column.")
        num_without = sum(not picture.settings.get(MAP) for picture in pictures)
        for name, cfg in list(self._configs.items()):
            if takes_map(cfg) and not cfg.fusion.activity_map and num_without:
                reason = f"{num_without} of {len(pictures)} pictures have no {MAP}"
                self._left_out[name] = f"{reason}; fusion.activity_map=sam3 sam3.path=DIRECTORY makes them"
                self._caller.warn(f"{name} is left out: {self._left_out[name]}")
                del self._configs[name]
        if not self._configs:
            raise InputError("compare: no method is left. Give the pictures activity maps, or another comparison.")
        if self._reference not in self._configs:
            self._reference = next(iter(self._configs))
            self._caller.warn(f"differences are to {self._reference}: the reference is left out")
        for note in self._dataset.notes:
            self._caller.note(note)
        for row, reason in self._dataset.left_out.items():
            self._caller.warn(f"{row} is left out: {reason}")
        self._caller.say(f"compare   {', '.join(self._configs)} on {len(pictures)} pictures")

    def _parts(self) -> Iterator[Sequence[Picture]]:
        """The pictures, in parts of about as many runs as may go together."""
        pictures, size = self._dataset.pictures, max(1, RUNS_TOGETHER // len(self._configs))
        return (pictures[i : i + size] for i in range(0, len(pictures), size))

    def _run_part(self, pictures: Sequence[Picture], animate: Animator) -> list[Exception | None]:
        """Every method on these pictures, picture by picture; the error of each run that failed."""
        requests, of_requests, errors = [], [], []
        for picture in pictures:
            for method, cfg in self._configs.items():
                try:
                    run, folder = on_picture(cfg, picture.settings), self._folder / method / picture.name
                    requests.append(request_of(run, folder, self._folder, self._caller.note, shares_store=True))
                    of_requests.append((method, picture.name))
                except Exception as error:  # of this run alone
                    errors.append(self._note(method, picture.name, error))
        found = launch.run_requests(requests, animate) if requests else []
        return errors + [self._note(*of, error) for of, error in zip(of_requests, found, strict=True)]

    def _note(self, method: str, picture: str, error: Exception | None) -> Exception | None:
        """Take note of how a run has ended, and say why it has failed, once for all methods on the picture."""
        name = f"{method}/{picture}"
        self._left_out.pop(name, None)
        if error is None:
            self._num_done += 1
            return None
        self._left_out[name] = in_words(error)
        if (picture, self._left_out[name]) not in self._said:
            self._said.add((picture, self._left_out[name]))
            self._caller.warn(f"{name} is left out:")
            exit_code = launch.report_error(error)
            self._exit_code = self._exit_code or exit_code
        return error

    def _report(self) -> None:
        """Write it, of what is there; a failure costs the report alone."""
        if self._num_done:
            try:
                exit_code = launch.write_report(self._folder)
            except Exception as error:
                exit_code = launch.report_error(error)
            self._exit_code = self._exit_code or exit_code

    def _clear_store(self) -> None:
        """What runs go on from, unless it is the user's own or something is still to be gone on with."""
        from fresco_dist.runtime.store import Store

        folder = self._folder / "store"
        if self._exit_code == 0 and self._cfg.store.path is None and folder.is_dir():
            Store(folder).clear()

    def _write_manifest(self) -> None:
        """What the report reads, whole or not at all."""
        from fresco_dist.jobs.folder import WriteError

        left = list(self._configs)
        manifest = {
            "dataset": str(expanded(self._cfg.dataset).absolute()),
            "compare": self._cfg.compare,
            "reference": self._reference,
            "methods": {name: self._methods.overrides[name] for name in left},
            "configs": {name: plain_values(checked_config(self._configs[name])[0]) for name in left},
            "pictures": {picture.name: picture.settings for picture in self._dataset.pictures},
            "left_out": self._left_out,
        }
        try:
            write_aside(self._folder / MANIFEST, lambda partial: partial.write_text(json.dumps(manifest, indent=1)))
        except OSError as error:  # the runs go on
            exit_code = launch.report_error(WriteError(MANIFEST, self._folder, error))
            self._exit_code = self._exit_code or exit_code


def _run() -> int:
    if asks_for_sweep(*split_flags(sys.argv[1:])):
        raise InputError("-m is not for fresco_dist.evaluate: what it compares is in comparison/NAME.yaml.")
    launch.compose(_job, defaults=OURS, picture_key="dataset")
    return 0


def main() -> int:
    """Run the command line; returns the exit code."""
    register(KEYS)
    return launch.run_command(_run)


if __name__ == "__main__":
    sys.exit(main())
