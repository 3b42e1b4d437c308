"""The report of a sweep: `python -m fresco_dist.report SWEEP_FOLDER` writes SWEEP_FOLDER/report/.

Reads the run folders of a Hydra sweep (run.json, video.mp4, contact_sheet.png) and touches nothing else. Products:
`table.csv` and `table.md` (what varies, metrics, times), `means.csv` and `means.md` (over pictures and seeds, if there
are several), `plane.png` (the creativity / prior-similarity plane), `contact_sheets.png` (side by side), and
`index.html`, one file with the videos in it.
"""

from pathlib import Path

from fresco_dist.report.means import average, complete
from fresco_dist.report.page import write_page
from fresco_dist.report.plane import write_plane
from fresco_dist.report.points import Point, read_points
from fresco_dist.report.sheets import write_sheets
from fresco_dist.report.table import mean_rows, rows, write_csv, write_markdown

__all__ = ["Point", "read_points", "write"]


def write(sweep_folder: Path) -> Path:
    """Write the report of the sweep in `sweep_folder`; returns its folder.

    Raises InputError if there is no finished run. The plane is left out of a sweep without `metrics=true`.
    """
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
