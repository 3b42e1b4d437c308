"""The command: `python -m fresco_dist.report.study FOLDER` writes a study, `... study tally STUDY VOTES` counts it.

Exit codes: 0 done, 2 bad input, 1 a file cannot be written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fresco_dist.config import require
from fresco_dist.report.aside import write_aside
from fresco_dist.report.command import exit_code
from fresco_dist.report.study.votes import KEY_NAME, checks, preferences, read_key, read_votes
from fresco_dist.report.study.writing import write_study
from fresco_dist.report.table import markdown, write_csv


def _write(args: argparse.Namespace) -> None:
    *given, key = write_study(
        args.folder, methods=args.methods, against=args.against, out=args.out, num_pairs=args.pairs, seed=args.seed
    )
    print(f"for raters  {', '.join(map(str, given))}")
    print(f"for you     {key} (says which method is which)")


def _tally(args: argparse.Namespace) -> None:
    key = read_key(args.study)
    votes = read_votes(args.votes, key)
    for rater in args.without:
        known = votes.pop(rater, None) is not None
        require(known, "--without", rater, f"one of {', '.join(votes)}", "Give a rater's name as the votes have it.")
    require(any(votes.values()), "votes", "none", "given", "Give files with answers in them.")
    table, raters = preferences(key, votes), checks(key, votes)
    left_out = f" Without {', '.join(args.without)}." if args.without else ""
    num_partial = sum(row["answers"] < row["asked"] for row in raters)
    print(f"Study {key['study']}: {len(votes)} raters, {num_partial} of them partial.{left_out}\n")
    print(markdown(table))
    print("95% Wilson intervals; all ratings are taken as independent.\n")
    print(markdown(raters), end="")
    if args.out:
        write_aside(args.out, lambda partial: write_csv(partial, table))


def _names(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]


def _parser(tally: bool) -> argparse.ArgumentParser:
    prog = "python -m fresco_dist.report.study"
    if tally:
        parser = argparse.ArgumentParser(prog=f"{prog} tally", description="Count the votes of a study.")
        parser.add_argument("study", type=Path, help=f"the study's {KEY_NAME}, or its folder")
        parser.add_argument("votes", type=Path, nargs="+", help="votes-STUDY-RATER.json, one for each rater")
        parser.add_argument("--without", action="append", default=[], metavar="RATER", help="leave a rater out")
        parser.add_argument("--out", type=Path, metavar="CSV", help="write the preferences to a table, too")
        return parser
    parser = argparse.ArgumentParser(
        prog=prog, description="Write a user study, one page of pairs of videos; `tally STUDY VOTES` counts its votes."
    )
    parser.add_argument("folder", type=Path, help="an evaluation's or a sweep's folder")
    parser.add_argument(
        "--methods", type=_names, default=[], metavar="A,B", help="compared with each other; default all"
    )
    parser.add_argument(
        "--against", type=_names, default=[], metavar="C,D", help="each compared with those of --methods alone"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page; default FOLDER/study/study.html")
    parser.add_argument("--pairs", type=int, metavar="N", help="how many pairs of videos to show; default all")
    parser.add_argument("--seed", type=int, default=0, help="of sides and order")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    tally = argv[:1] == ["tally"]
    args = _parser(tally).parse_args(argv[tally:])
    return exit_code(lambda: _tally(args) if tally else _write(args), "--out")


if __name__ == "__main__":
    sys.exit(main())
