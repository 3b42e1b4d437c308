"""The command: VBench-I2V for the runs of an evaluation or a sweep.

    python -m fresco_dist.report.vbench export FOLDER OUT [--methods a,b]
    launch/vbench/run.sh OUT
    python -m fresco_dist.report.vbench import OUT

VBench runs in an environment of its own, between the two. Exit codes: 0 done, 1 OUT cannot be
written, 2 bad input.
"""

import argparse
import sys
from pathlib import Path

from fresco_dist.config import InputError
from fresco_dist.report.comparison import read_comparison
from fresco_dist.report.vbench.exporting import export
from fresco_dist.report.vbench.results import write_tables


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fresco_dist.report.vbench", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    exporting = commands.add_parser("export", help="videos and pictures as VBench reads them")
    exporting.add_argument("folder", type=Path, metavar="FOLDER", help="of an evaluation, or of a sweep")
    exporting.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    exporting.add_argument("--methods", default="", metavar="A,B", help="only these (default: all)")
    importing = commands.add_parser("import", help="tables of VBench's results")
    importing.add_argument("out", type=Path, metavar="OUT", help="a folder that was exported, with results/")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "export":
            _export(arguments.folder, arguments.out, [name for name in arguments.methods.split(",") if name])
        else:
            _import(arguments.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: OUT cannot be written: {error}", file=sys.stderr)
        return 1
    return 0


def _export(folder: Path, out: Path, methods: list[str]) -> None:
    done = export(read_comparison(folder, methods), out)
    for line in done.left_out:
        print(f"left out   {line}")
    kind = "hard links" if done.linked else "copies"
    print(f"exported   {done.num_videos} videos of {len(done.pictures)} pictures ({kind})")
    print(f"next       launch/vbench/run.sh {out}")


def _import(out: Path) -> None:
    missing = write_tables(out)
    for line in missing:
        print(f"no results {line}")
    for name in ("vbench.md", "vbench.csv", "vbench_videos.csv"):
        print(out / name)


if __name__ == "__main__":
    sys.exit(main())
