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

from fresco_dist.report.command import exit_code
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
    if arguments.command == "import":
        return exit_code(lambda: _import(arguments.out), "OUT")
    methods = [name for name in arguments.methods.split(",") if name]
    return exit_code(lambda: _export(arguments.folder, arguments.out, methods), "OUT")


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
