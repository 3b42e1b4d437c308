"""The command: `python -m fresco_dist.evaluate dataset=FOLDER compare=NAME hydra.sweep.dir=OUT`.

Runs every method of a comparison on every picture of a data set, into OUT/METHOD/PICTURE, and writes what they come to
into OUT/report. Keys, signals and exit codes are those of `fresco_dist.launch`; typed again, it does what is missing.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fresco_dist import launch
from fresco_dist.config import InputError, require
from fresco_dist.evaluate.dataset import Dataset, Picture, read_dataset
from fresco_dist.evaluate.methods import KEYS, MAP, Methods, compose_methods, on_picture, read_methods, takes_map
from fresco_dist.report.comparison import MANIFEST

OURS = ["metrics=true", "hydra.run.dir=${hydra.sweep.dir}"]  # defaults of this command
WITH_VALUE = ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--package", "-p")  # Hydra's flags
RUNS_TOGETHER = 32  # about: pictures and jobs of more at once would fill the memory


@hydra.main(version_base="1.3", config_path=launch.CONFIG_FOLDER, config_name="config")
def _job(cfg: DictConfig) -> None:
    """All of it; errors are reported here, where Hydra cannot add lines."""
    try:
        exit_code = _evaluate(cfg)
    except Exception as error:
        exit_code = launch.report_error(error)
    raise SystemExit(exit_code)


def _evaluate(cfg: DictConfig) -> int:
    """Read what is asked for, and run it; returns the exit code."""
    hydra_config = HydraConfig.get()
    is_run = hydra_config.mode is RunMode.RUN
    remedy = "What is to be compared is in comparison/NAME.yaml, and all of it runs together."
    require(is_run, "-m", "a sweep", "left out of fresco_dist.evaluate", remedy)
    remedy = "Give dataset=FOLDER."
    require(cfg.dataset is not None, "dataset", None, "a folder of pictures with metadata.jsonl, or with texts", remedy)
    methods = read_methods(cfg.compare, cfg.reference)
    dataset = read_dataset(Path(cfg.dataset))
    common = [text for text in hydra_config.overrides.task if text.partition("=")[0].lstrip("+~") not in KEYS]
    evaluation = Evaluation(Path(hydra_config.runtime.output_dir), dataset, methods, common, cfg)
    return evaluation.run()


class Evaluation:
    """Methods on pictures, and what has come of them so far."""

    def __init__(
        self, folder: Path, dataset: Dataset, methods: Methods, common: Sequence[str], cfg: DictConfig
    ) -> None:
        self._folder, self._dataset, self._methods, self._cfg = folder, dataset, methods, cfg
        self._configs = compose_methods(methods, common)
        self._left_out = dict(dataset.left_out)
        self._exit_code = 0
        self._said: set[str] = set()

    def run(self) -> int:
        """All pictures, some at a time, on one pool; the report is written anew after each part."""
        from fresco_dist.jobs.pool import Pool

        self._announce()
        pictures, num_done = self._dataset.pictures, 0
        with Pool() as pool:
            for part in self._parts():
                num_runs = self._run_part(part, pool)
                num_done += len(part)
                if self._cfg.plan_only:
                    continue
                launch.say(f"pictures  {num_done} of {len(pictures)}")
                self._write_manifest()
                if num_runs:
                    self._exit_code = launch.write_report(self._folder) or self._exit_code
        return self._exit_code

    def _announce(self) -> None:
        """Say what there is, and leave out methods for which there is nothing."""
        with_map = [picture for picture in self._dataset.pictures if picture.settings.get(MAP)]
        for name, cfg in list(self._configs.items()):
            if takes_map(cfg) and not cfg.fusion.activity_map and not with_map:
                reason = f"no picture has {MAP}; fusion.activity_map=sam3 sam3.path=DIRECTORY makes them"
                self._left_out[name] = reason
                launch.say(f"warning   {name} is left out: {reason}")
                del self._configs[name]
        if not self._configs:
            raise InputError("compare: no method is left. Give the pictures activity maps, or another comparison.")
        for note in self._dataset.notes:
            launch.say(f"note      {note}")
        for row, reason in self._dataset.left_out.items():
            launch.say(f"warning   {row} is left out: {reason}")
        launch.say(f"compare   {', '.join(self._configs)} on {len(self._dataset.pictures)} pictures")

    def _parts(self) -> Iterator[Sequence[Picture]]:
        """The pictures, in parts of about as many runs as may go together."""
        pictures, size = self._dataset.pictures, max(1, RUNS_TOGETHER // len(self._configs))
        return (pictures[i : i + size] for i in range(0, len(pictures), size))

    def _run_part(self, pictures: Sequence[Picture], pool) -> int:
        """Every method on these pictures, picture by picture; how many runs are done."""
        requests, names = [], []
        for picture in pictures:
            for method, cfg in self._configs.items():
                name = f"{method}/{picture.name}"
                try:
                    run = on_picture(cfg, picture.settings)
                    requests.append(launch.request_of(run, self._folder / name, self._folder))
                    names.append(name)
                except Exception as error:  # of this run alone
                    self._take_error(name, error)
        for name, error in zip(names, launch.run_requests(requests, pool), strict=True):
            if error is None:
                self._left_out.pop(name, None)
            else:
                self._take_error(name, error)
        return sum(name not in self._left_out for name in names)

    def _take_error(self, name: str, error: Exception) -> None:
        """Note it, and say it if it has not been said of another method on the picture."""
        reason = launch.in_words(error)
        self._left_out[name] = reason
        if reason not in self._said:
            self._said.add(reason)
            launch.say(f"warning   {name} is left out:")
            self._exit_code = launch.report_error(error) or self._exit_code

    def _write_manifest(self) -> None:
        """What the report reads, whole or not at all."""
        reference, left = self._methods.reference, list(self._configs)
        manifest = {
            "dataset": str(Path(self._cfg.dataset).expanduser().absolute()),
            "compare": self._cfg.compare,
            "reference": reference if reference in left else left[0],
            "methods": {name: self._methods.overrides[name] for name in left},
            "pictures": {picture.name: picture.settings for picture in self._dataset.pictures},
            "left_out": self._left_out,
        }
        partial = self._folder / f".partial-{MANIFEST}"
        partial.write_text(json.dumps(manifest, indent=1) + "\n")
        partial.replace(self._folder / MANIFEST)


def _with_defaults(arguments: Sequence[str]) -> list[str]:
    """What was typed, and before its overrides those of this command: Hydra wants all of them in one place."""
    takes_value = False
    for i, argument in enumerate(arguments):
        if not takes_value and not argument.startswith("-"):
            return [*arguments[:i], *OURS, *arguments[i:]]
        takes_value = argument in WITH_VALUE and not takes_value
    return [*arguments, *OURS]


def main() -> int:
    """Run the command line; returns the exit code."""
    launch.register(KEYS)
    sys.argv[1:] = _with_defaults(sys.argv[1:])
    return launch.run_command(lambda: launch.compose(_job) or 0)


if __name__ == "__main__":
    sys.exit(main())
