"""What a user waits for, with this code and with an earlier one: ratios of seconds, measured in turns.

The bundled demonstration, its time from command to the first encoding and to the end, and the plan of a picture of
3840 x 2160 px with the embedded model (5293 windows). `--before` is the Python of a virtual environment in which the
earlier code is installed.

    python benchmarks/start.py --before EARLIER/bin/python [--repeats 3] [--timeout-s 300]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image


def run_s(python: str, timeout_s: float, *overrides: str) -> tuple[float, float]:
    """When the command began (Unix seconds), and its seconds; infinite if it was not done in time."""
    began_s = time.time()
    command = [python, "-m", "fresco_dist.launch", *overrides]
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=timeout_s, cwd=tempfile.gettempdir())
    except subprocess.TimeoutExpired:
        return began_s, float("inf")
    return began_s, time.time() - began_s


def demonstration_s(python: str, folder: Path) -> dict[str, float]:
    """Seconds of the demonstration, and until its first encoding."""
    began_s, total_s = run_s(python, 900.0, f"hydra.run.dir={folder}")
    if total_s == float("inf"):
        return {"until the first encoding": total_s, "the demonstration": total_s}
    run, trace = (json.loads((folder / name).read_text()) for name in ("run.json", "trace.json"))
    # run.json is written when `total` is known; the trace begins when the workers are there
    workers_s = (folder / "run.json").stat().st_mtime - run["timings_s"]["total"] + run["timings_s"]["start"]
    first_us = min(event["ts"] for event in trace["traceEvents"] if event.get("cat") == "encode")
    return {"until the first encoding": workers_s - began_s + first_us / 1e6, "the demonstration": total_s}


def main() -> None:
    """Print a row per wait."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="the earlier code's Python")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout-s", type=float, default=300.0, help="for the plan")
    arguments = parser.parse_args()
    pythons = {"before": arguments.before, "now": sys.executable}
    times: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        Image.new("RGB", (3840, 2160), "white").save(folder / "uhd.png")
        for repeat in range(arguments.repeats):
            for name, python in pythons.items():
                found = demonstration_s(python, folder / f"{name}{repeat}")
                if repeat == 0:
                    plan = ["plan_only=true", f"image={folder / 'uhd.png'}", f"hydra.run.dir={folder / 'plan'}"]
                    found["the plan at 3840 x 2160"] = run_s(python, arguments.timeout_s, *plan)[1]
                for wait, seconds in found.items():
                    times.setdefault(wait, {}).setdefault(name, []).append(seconds)
    print("| | before, s: median (min - max) | now | now / before |")
    print("|---|---|---|---|")
    for wait, of in times.items():
        medians = {name: statistics.median(seconds) for name, seconds in of.items()}
        cells = [f"{medians[name]:.1f} ({min(of[name]):.1f} - {max(of[name]):.1f})" for name in pythons]
        print(f"| {wait} | {cells[0]} | {cells[1]} | {medians['now'] / medians['before']:.2f} |")


if __name__ == "__main__":
    main()
