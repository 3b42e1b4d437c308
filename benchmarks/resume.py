"""What a driver that is killed costs: forwards done again, seconds over what was left, and what storing takes.

A run is killed (SIGKILL) at a quarter, half and three quarters of its forwards, and the same command is typed again;
then runs with and without a store take turns. Of the bundled picture with the embedded model, and of a picture of
3840 x 2160 px whose forwards only wait:

    python benchmarks/resume.py [--runs 3] [--only bundled]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from PIL import Image

from fresco_dist import launch
from fresco_dist.jobs import pool_run
from fresco_dist.schedule.execute import Executor, Observer
from fresco_dist.schedule.graph import Graph
from fresco_dist.schedule.trace import TaskRecord

SHARES = (0.25, 0.5, 0.75)
NUM_WORKERS, FORWARD_S = 8, 0.5


def run_until(num_forwards: int, overrides: list[str]) -> None:
    """The command in this process, which is killed after so many forwards."""
    whole, done = pool_run.execute, 0

    def execute(graph: Graph, executor: Executor, observe: Observer, *others: Any) -> Any:
        def count(record: TaskRecord) -> None:
            nonlocal done
            observe(record)
            done += record.task.traits.forward
            if done >= num_forwards:
                os.kill(os.getpid(), signal.SIGKILL)

        return whole(graph, executor, count, *others)

    with mock.patch.object(pool_run, "execute", execute), mock.patch.object(sys, "argv", ["launch", *overrides]):
        sys.exit(launch.main())


def run_command(*command: str) -> float:
    """Seconds of a command, the interpreter's start included; it may be killed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    began_s = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return time.perf_counter() - began_s


def forwards_of(folder: Path) -> tuple[int, float]:
    """How many forwards a run has done, and seconds from the first one to the last fused cell."""
    events = [e for e in json.loads((folder / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    steps = [e for e in events if e["cat"] in ("predict", "fuse", "commit")]
    end = max(e["ts"] + e["dur"] for e in steps)
    return sum(e["cat"] == "predict" for e in events), (end - min(e["ts"] for e in steps)) / 1e6


def digest_of(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["latents_sha256"]


def measure(overrides: list[str], folder: Path, num_runs: int) -> None:
    """Print what each kill costs, and what storing does."""
    whole_s, plain_s, stored_s = [], [], []
    for i in range(num_runs):
        for times, enabled in ((plain_s, False), (stored_s, True)):
            out = folder / f"whole_{enabled}_{i}"
            seconds = run_command(
                "-m", "fresco_dist.launch", *overrides, f"store.enabled={enabled}", f"hydra.run.dir={out}"
            )
            total, steps_s = forwards_of(out)
            times.append(steps_s)
            whole_s += [seconds] if enabled else []
    print(f"whole     {total} forwards, {median(whole_s):.1f} s; steps {median(stored_s):.2f} s")
    ratios = sorted(stored / plain for stored, plain in zip(stored_s, plain_s))
    print(
        f"storing   steps take {median(ratios):.3f} of those without ({ratios[0]:.3f} - {ratios[-1]:.3f})", flush=True
    )
    for share in SHARES:
        out = folder / f"killed_{share}"
        killed_at = round(share * total)
        command = [*overrides, f"hydra.run.dir={out}"]
        run_command(__file__, "--kill-after", str(killed_at), *command)
        seconds = run_command("-m", "fresco_dist.launch", *command)
        again, steps_s = forwards_of(out)
        assert digest_of(out) == digest_of(folder / "whole_True_0")
        over_s = steps_s - (1 - share) * median(stored_s)
        print(
            f"killed    at {share:.0%} ({killed_at}): {killed_at + again - total} forwards done again;"
            f" steps {steps_s:.1f} s, {over_s:+.1f} s over what was left; command {seconds:.1f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="with and without a store, in turns")
    parser.add_argument("--only", choices=("bundled", "synthetic"), help="one of the two")
    parser.add_argument("--kill-after", type=int, help=argparse.SUPPRESS)
    options, overrides = parser.parse_known_args()
    if options.kill_after is not None:
        run_until(options.kill_after, overrides)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.new("RGB", (3840, 2160), (90, 120, 60)).save(folder / "large.png")
        synthetic = ["model=synthetic", f"model.forward_s={FORWARD_S}", f"image={folder / 'large.png'}"]
        synthetic += [f"cluster.num_workers={NUM_WORKERS}", "cluster.cpus_per_worker=0.1", "video.num_frames=9"]
        for kind, given in (("bundled", []), ("synthetic", synthetic)):
            if options.only in (None, kind):
                print(kind)
                measure(given, folder / kind, options.runs)


if __name__ == "__main__":
    main()
