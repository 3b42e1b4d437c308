"""The tables of a comparison: means with 95% intervals, and differences to the reference on the same pictures.

A picture counts if every method has done it, and for a metric if every method has it there. Writes Markdown and LaTeX
(booktabs), and has rows for CSV: of methods, and of all runs for other statistics. No value is marked as the best: the
metrics trade off.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fresco_dist.report.comparison import Comparison
from fresco_dist.report.intervals import FEW, bootstrap_interval, half_width
from fresco_dist.report.points import Point
from fresco_dist.report.table import Row, markdown

ROUNDING = 1e-9  # of a value: less is no spread
LATEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
)


def worker_s(point: Point) -> float | None:
    """Seconds of work, added up over workers, that the clip needs, what it shares with other clips included.

    None if it went on from what an earlier start, or another run, had stored: those seconds are not known.
    """
    starts, schedule = point.run.get("starts", []), point.run.get("schedule")
    whole = bool(starts) and not starts[-1].get("stored_steps")
    return schedule["lower_bound_s"] * point.run["num_workers"] if whole and schedule else None


def run_rows(comparison: Comparison) -> list[Row]:
    """A row per run that is done, those of pictures that another method lacks as well."""
    runs = [(method, picture, point) for method, done in comparison.runs.items() for picture, point in done.items()]
    names = dict.fromkeys(name for _, _, point in runs for name in point.metrics)
    return [
        {"method": method, "picture": picture}
        | {name: point.metrics.get(name) for name in names}
        | {"work": point.run.get("work"), "worker_s": worker_s(point)}
        | {"latents_sha256": point.run.get("latents_sha256")}
        for method, picture, point in runs
    ]


def pictures_with(comparison: Comparison) -> dict[str, list[str]]:
    """The complete pictures on which every method has each metric, as a number that is finite."""
    runs = [[done[picture] for done in comparison.runs.values()] for picture in comparison.complete]
    names = dict.fromkeys(name for of_picture in runs for point in of_picture for name in point.metrics)

    def have(of_picture: Sequence[Point], name: str) -> bool:
        return all(math.isfinite(point.metrics.get(name, math.nan)) for point in of_picture)

    return {name: [p for p, found in zip(comparison.complete, runs) if have(found, name)] for name in names}


def mean_rows(comparison: Comparison) -> list[Row]:
    """A row per method, numbers as they are; None is what needs two pictures, a reference or seconds, and has none."""
    pictures, runs = comparison.complete, comparison.runs
    rows: list[Row] = [{"method": method, "n": len(pictures)} for method in runs]
    reference = list(runs).index(comparison.reference)
    for name, found in pictures_with(comparison).items():
        if not found:
            continue
        values_NM = np.array([[done[picture].metrics[name] for done in runs.values()] for picture in found])
        differences_NM = values_NM - values_NM[:, [reference]]
        half_widths, lows, highs = [[None] * len(rows)] * 3
        if len(found) > 1:
            half_widths, (lows, highs) = half_width(values_NM).tolist(), bootstrap_interval(differences_NM).tolist()
        for m, row in enumerate(rows):
            other = m != reference
            row |= {
                name: values_NM[:, m].mean().item(),
                f"{name}_n": len(found),
                f"{name}_half_width": half_widths[m],
                f"{name}_difference": differences_NM[:, m].mean().item() if other else None,
                f"{name}_difference_low": lows[m] if other else None,
                f"{name}_difference_high": highs[m] if other else None,
            }
    timed = [p for p in pictures if all(worker_s(done[p]) is not None for done in runs.values())]
    for row, done in zip(rows, runs.values()):
        work = [done[picture].run["work"] for picture in pictures if "work" in done[picture].run]
        seconds = [s for picture in timed if (s := worker_s(done[picture])) is not None]
        row |= {"work": _mean(work), "worker_s": _mean(seconds), "worker_s_n": len(seconds)}
    return rows


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def readable(rows: Sequence[Row], plus_minus: str = " ± ") -> tuple[list[Row], list[Row]]:
    """The means and the differences of `mean_rows` for people, as text; the second has no row of the reference."""
    names = [key.removesuffix("_half_width") for key in rows[0] if key.endswith("_half_width")]
    means, differences = [], []
    for row in rows:
        mean: Row = {"method": row["method"], "n": str(row["n"])}
        for name in names:
            spread = row[f"{name}_half_width"]
            width = "" if spread is None else plus_minus + _number(spread, spread, of=row[name])
            mean[name] = _number(row[name], spread) + width + _part(row, name)
        mean["work"] = _number(row["work"])
        if any(each["worker_s_n"] for each in rows):
            mean["worker_s"] = _number(row["worker_s"]) + _part(row, "worker_s")
        means.append(mean)
        if any(row[f"{name}_difference"] is not None for name in names):
            shown = {
                name: _difference(*(row[f"{name}_difference{end}"] for end in ("", "_low", "_high"))) for name in names
            }
            differences.append({"method": row["method"], "n": str(row["n"])} | shown)
    return means, differences


def _part(row: Row, name: str) -> str:
    """Of how many pictures a mean is, unless of all or none."""
    num = row[f"{name}_n"]
    return f" ({num})" if 0 < num < row["n"] else ""


def _difference(mean: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return _number(mean)
    scale = (high - low) / 2
    return f"{_number(mean, scale)} [{_number(low, scale)}, {_number(high, scale)}]"


def _number(value: float | None, scale: float | None = None, of: float = 0.0) -> str:
    """To two digits of `scale`, which says how exact it is, or to four of its own; 0 if it is but rounding of `of`."""
    if value is None:
        return ""
    if abs(value) < ROUNDING * abs(of):
        return "0"
    size, digits = (scale, 2) if scale and scale > ROUNDING * abs(value) else (abs(value), 4)
    decimals = max(0, digits - 1 - math.floor(math.log10(size))) if size else 0
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if not text.strip("-0.") else text


def notes(comparison: Comparison) -> list[str]:
    """What the tables show and what they leave out, a line each."""
    complete, runs = comparison.complete, comparison.runs
    lines = [
        f"{len(complete)} of {len(comparison.pictures)} pictures: those that every method has done.",
        f"Mean ± half width of its 95% interval (Student's t); difference to {comparison.reference} on the same"
        " pictures [its 95% interval] (bootstrap over pictures, BCa).",
        "work: forwards of one full window for a clip. worker_s: seconds of work of all workers for a clip, what it"
        " shares with others included; of the pictures on which no method went on from what was stored (their number,"
        " if not all).",
    ]
    if len(complete) < FEW:
        lines.append(f"Bootstrap intervals of fewer than {FEW} pictures are too narrow.")
    for name, found in pictures_with(comparison).items():
        if len(found) < len(complete):
            shown = (
                f"is of the {len(found)} pictures on which every method has it" if found else "is left out: no picture"
            )
            lines.append(f"{name} {shown}{'' if found else ' has it of every method'}.")
    failed = {f"{method}/{picture}" for method in runs for picture in comparison.pictures} & comparison.left_out.keys()
    num_done = sum(len(done) for done in runs.values())
    num_missing = len(runs) * len(comparison.pictures) - num_done - len(failed)
    if num_missing:
        lines.append(f"Runs that are not there yet: {num_missing}.")
    return lines + [" ".join(f"Left out: {row}: {reason}".split()) for row, reason in comparison.left_out.items()]


def write_markdown(path: Path, comparison: Comparison, rows: Sequence[Row]) -> None:
    """Both tables and what is to be said of them."""
    means, differences = readable(rows)
    text = markdown(means)
    if differences:
        text += f"\nDifferences to {comparison.reference}:\n\n{markdown(differences)}"
    path.write_text(text + "\n" + "".join(f"- {line}\n" for line in notes(comparison)))


def write_latex(path: Path, comparison: Comparison, rows: Sequence[Row]) -> None:
    """One tabular for \\input, means above differences; needs the package booktabs."""
    means, differences = readable(rows, plus_minus=r" \pm ")
    keys = list(means[0])
    lines = [f"% {line}".replace("±", "+-") for line in (r"\usepackage{booktabs}", *notes(comparison))]
    lines += [
        rf"\begin{{tabular}}{{l{'r' * (len(keys) - 1)}}}",
        r"\toprule",
        _line(key.replace("_", " ").translate(LATEX) for key in keys),
    ]
    lines += [r"\midrule", *(_latex_row(row, keys) for row in means)]
    if differences:
        title = f"difference to {comparison.reference}".translate(LATEX)
        lines += [r"\midrule", rf"\multicolumn{{{len(keys)}}}{{l}}{{{title}}} \\"]
        lines += [_latex_row(row, keys) for row in differences]
    path.write_text("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n")


def _latex_row(row: Row, keys: Sequence[str]) -> str:
    formulas = [f"${row[key]}$".replace(" [", r"\ [").replace(" (", r"\ (") if row.get(key) else "" for key in keys[1:]]
    return _line([row["method"].translate(LATEX), *formulas])


def _line(cells: Any) -> str:
    return " & ".join(cells) + r" \\"
