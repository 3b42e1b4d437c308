"""The command: `python -m fresco_dist.report SWEEP_FOLDER`. Exit codes: 0 done, 2 the folder is no sweep."""

import argparse
import sys
from pathlib import Path

from fresco_dist.config import InputError
from fresco_dist.report import write


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fresco_dist.report", description="Write the report of a sweep.")
    parser.add_argument("sweep_folder", type=Path, help="a folder below multirun/ (hydra.sweep.dir)")
    try:
        folder = write(parser.parse_args(argv).sweep_folder)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in sorted(folder.iterdir()):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
