"""Reports: `python -m fresco_dist.report FOLDER` writes FOLDER/report/.

Reads run folders (run.json, video, contact_sheet.png) and touches nothing else. Products of a Hydra sweep:
`table.csv` and `table.md` (what varies, metrics, times), `means.csv` and `means.md` (over pictures and seeds, if there
are several), `plane.png` (the creativity / prior-similarity plane), `contact_sheets.png` (side by side), and
`index.html`, one file with the videos in it. Products of an evaluation: `comparison.md`, `.csv` and `.tex` (means with
intervals, and differences), `runs.csv` (every run), `plane.png`, and `comparison.html` (pairs of videos).
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from fresco_dist.config import require
from fresco_dist.report import comparison_table
from fresco_dist.report.comparison import MANIFEST, Figures, read_comparison
from fresco_dist.report.means import average, complete
from fresco_dist.report.page import write_comparison_page, write_page
from fresco_dist.report.plane import comparison_points, write_plane
from fresco_dist.report.points import Point, read_points
from fresco_dist.report.sheets import write_sheets
from fresco_dist.report.table import mean_rows, rows, write_csv, write_markdown

PRODUCTS = ("comparison.csv", "comparison.md", "comparison.tex", "runs.csv", "plane.png", "comparison.html")

__all__ = ["Point", "read_comparison", "read_points", "write", "write_comparison"]


def write(folder: Path, extra: Figures | None = None) -> Path:
    """Write the report of the sweep or the evaluation in `folder`; returns the report's folder.

    `extra` are metrics of an evaluation's runs that were measured elsewhere. Raises InputError if there is no run.
    """
    if (folder / MANIFEST).is_file():
        return write_comparison(folder, extra)
    require(extra is None, "FOLDER", folder, "an evaluation's with metrics from elsewhere", "Leave them out.")
    return _write_sweep(folder)


def write_comparison(folder: Path, extra: Figures | None = None) -> Path:
    """Write the comparison in an evaluation's or a sweep's folder; returns the report's folder.

    `extra` are metrics of its runs that were measured elsewhere. Without runs of all methods on a picture, tables are
    empty. Raises InputError.
    """
    comparison = read_comparison(folder).with_metrics(extra or {})
    means, runs = comparison_table.mean_rows(comparison), comparison_table.run_rows(comparison)
    shown, differences = comparison_table.readable(means)
    tables = {"Means": shown, f"Differences to {comparison.reference}": differences}
    notes = comparison_table.notes(comparison)
    report = folder / "report"
    report.mkdir(exist_ok=True)
    for leftover in folder.glob(".partial-report-*"):  # of a report that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with TemporaryDirectory(prefix=".partial-report-", dir=folder) as name:  # as far from the videos
        partial = Path(name)
        write_csv(partial / "comparison.csv", means)
        comparison_table.write_markdown(partial / "comparison.md", comparison, means)
        comparison_table.write_latex(partial / "comparison.tex", comparison, means)
        if runs:
            write_csv(partial / "runs.csv", runs)
        plane = write_plane(partial / "plane.png", comparison_points(comparison))
        write_comparison_page(partial / "comparison.html", comparison, tables, notes, plane)
        for name in PRODUCTS:
            if (partial / name).exists():
                (partial / name).replace(report / name)
            else:
                (report / name).unlink(missing_ok=True)  # of an earlier report
    return report


def _write_sweep(sweep_folder: Path) -> Path:
    points = read_points(sweep_folder)
    folder = sweep_folder / "report"
    folder.mkdir(exist_ok=True)
    done = [point for point in points if point.status == "done"]
    comparable = complete(done)
    means = average(comparable)
    tables = {"table": rows(points), "means": mean_rows(means) if len(means) < len(comparable) else []}
    for name, table in tables.items():
        for suffix, write_table in (("csv", write_csv), ("md", write_markdown)):
            path = folder / f"{name}.{suffix}"
            write_table(path, table) if table else path.unlink(missing_ok=True)
    plane = write_plane(folder / "plane.png", comparable or done)
    write_sheets(folder / "contact_sheets.png", done)
    write_page(folder / "index.html", points, plane)
    return folder
