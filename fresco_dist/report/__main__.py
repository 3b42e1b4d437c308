"""The command: `python -m fresco_dist.report FOLDER`. Exit codes: 0 done, 2 it has no runs of a sweep or evaluation."""

import argparse
import sys
from pathlib import Path

from fresco_dist.config import InputError
from fresco_dist.report import write
from fresco_dist.report.vbench_results import read_figures


def main(argv: list[str] | None = None) -> int:
    description = "Write the report of a sweep or an evaluation."
    parser = argparse.ArgumentParser(prog="python -m fresco_dist.report", description=description)
    parser.add_argument("folder", type=Path, help="its hydra.sweep.dir, by default a folder below multirun/")
    parser.add_argument("--vbench", type=Path, metavar="OUT", help="take VBench's results up, of that export")
    given = parser.parse_args(argv)
    try:
        report = write(given.folder, read_figures(given.vbench) if given.vbench else None)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in sorted(report.iterdir()):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
