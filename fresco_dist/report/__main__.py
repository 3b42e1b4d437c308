"""The command: `python -m fresco_dist.report FOLDER`. Exit codes: 0 done, 2 bad input, 1 it cannot be written."""

import argparse
import sys
from pathlib import Path

from fresco_dist.report import read_comparison, write
from fresco_dist.report.command import exit_code
from fresco_dist.report.vbench.results import read_figures


def main(argv: list[str] | None = None) -> int:
    description = "Write the report of a sweep or an evaluation."
    parser = argparse.ArgumentParser(prog="python -m fresco_dist.report", description=description)
    parser.add_argument("folder", type=Path, help="its hydra.sweep.dir, by default a folder below multirun/")
    parser.add_argument("--vbench", type=Path, metavar="OUT", help="take VBench's results up, of that export")
    given = parser.parse_args(argv)
    return exit_code(lambda: _write(given.folder, given.vbench), "the report")


def _write(folder: Path, vbench: Path | None) -> None:
    figures = read_figures(vbench, read_comparison(folder)) if vbench else None
    for path in sorted(write(folder, figures).iterdir()):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
