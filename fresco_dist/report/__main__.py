"""The command: `python -m fresco_dist.report FOLDER`. Exit codes: 0 done, 2 bad input, 1 it cannot be written."""

import argparse
import sys
from pathlib import Path

from fresco_dist.config import InputError
from fresco_dist.report import read_comparison, write
from fresco_dist.report.vbench.results import read_figures


def main(argv: list[str] | None = None) -> int:
    description = "Write the report of a sweep or an evaluation."
    parser = argparse.ArgumentParser(prog="python -m fresco_dist.report", description=description)
    parser.add_argument("folder", type=Path, help="its hydra.sweep.dir, by default a folder below multirun/")
    parser.add_argument("--vbench", type=Path, metavar="OUT", help="take VBench's results up, of that export")
    given = parser.parse_args(argv)
    try:
        figures = read_figures(given.vbench, read_comparison(given.folder)) if given.vbench else None
        report = write(given.folder, figures)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: the report cannot be written: {error}", file=sys.stderr)
        return 1
    for path in sorted(report.iterdir()):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
