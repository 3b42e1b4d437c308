"""The real policy in virtual time, from 1 to 1024 workers: how far from the bounds, and where the time goes.

Unit forwards, or random ones; workers of unequal speed; stragglers; workers that die. Draws makespan over the lower
bound against the number of workers, and the timeline of one run.

    python benchmarks/simulated_scaling.py [--out FOLDER] [--workers 8 16 32 64 ...]
"""

import argparse
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fresco_dist import models
from fresco_dist.config import DispatchMode
from fresco_dist.media.timeline import draw_timeline
from fresco_dist.schedule.execute import execute
from fresco_dist.schedule.graph import Graph, Task
from fresco_dist.schedule.keys import Content, make_keys
from fresco_dist.schedule.plan import Plan, make_plan
from fresco_dist.schedule.simulate import SimulatedExecutor
from fresco_dist.schedule.tasks import run_graph
from fresco_dist.schedule.trace import TaskRecord, schedule_summary
from fresco_dist.settings.schema import compose_config

GRIDS = {25: ((720, 1280), 0.5), 36: ((480, 832), 0.25), 72: ((480, 832), 0.5)}
WORKERS = [2**i for i in range(11)]
Duration = Callable[[int, Task], float]


def uhd_plan(num_windows: int) -> Plan:
    """A UHD clip of 6 steps and a prior of 6 forwards."""
    (height, width), overlap = GRIDS[num_windows]
    overrides = ["model=synthetic", f"tiles.window=[{height},{width}]", f"tiles.overlap={overlap}"]
    overrides.append(f"prior.area={height * width}")
    config = compose_config(*overrides)
    return make_plan(config, models.read_spec(config.model), (3840, 2160), 1)


def graph_of(plan: Plan, mode: DispatchMode, num_jobs: int = 1) -> Graph:
    """So many jobs that share nothing, as one graph."""
    return run_graph([plan] * num_jobs, [make_keys(plan, Content(seed=job)) for job in range(num_jobs)], mode)


def equal(graph: Graph) -> Duration:
    """Every forward takes 1, all else nothing."""
    return lambda worker, task: graph.nodes[task].cost if task.traits.forward else 0.0


def simulate(
    graph: Graph, num_workers: int, duration: Duration, losses: dict[int, float] | None = None
) -> tuple[dict[str, float], list[TaskRecord]]:
    """Summary and records of one run."""
    records: list[TaskRecord] = []
    dropped = execute(graph, SimulatedExecutor(num_workers, duration, losses), records.append, {})
    assert not dropped
    return schedule_summary(records, num_workers, graph), records


def over_bound(summary: dict[str, float]) -> float:
    """Makespan over the larger of work / workers and the critical path."""
    return summary["makespan_s"] / max(summary["lower_bound_s"], summary["critical_path_s"])


def print_scaling(workers: list[int]) -> dict[tuple[int, DispatchMode], list[float]]:
    """A row per grid and number of workers; the ratios for the figure."""
    ratios: dict[tuple[int, DispatchMode], list[float]] = {}
    print(
        "| windows | workers | allreduce: makespan, busy | wavefront: makespan, busy | work / workers | critical path |"
    )
    print("|---|---|---|---|---|---|")
    for num_windows in GRIDS:
        plan = uhd_plan(num_windows)
        for num_workers in workers:
            summaries = {}
            for mode in DispatchMode:
                graph = graph_of(plan, mode)
                summaries[mode], _ = simulate(graph, num_workers, equal(graph))
                ratios.setdefault((num_windows, mode), []).append(over_bound(summaries[mode]))
            cells = [f"{s['makespan_s']:g}, {s['busy_fraction']:.0%}" for s in summaries.values()]
            bounds = summaries[DispatchMode.wavefront]
            print(
                f"| {num_windows} | {num_workers} | {' | '.join(cells)} | {bounds['lower_bound_s']:.4g}"
                f" | {bounds['critical_path_s']:g} |"
            )
    return ratios


def print_situations() -> list[TaskRecord]:
    """72 windows on 8 workers when things are not equal; the records of the run with a lost worker."""
    graph = graph_of(uhd_plan(72), DispatchMode.wavefront)
    generator = random.Random(0)
    speeds = [1.0] * 6 + [0.5, 0.25]

    def spread(worker: int, task: Task) -> float:
        return equal(graph)(worker, task) * generator.uniform(0.8, 1.2)

    def straggling(worker: int, task: Task) -> float:
        return equal(graph)(worker, task) * (5.0 if generator.random() < 0.02 else 1.0)

    situations: dict[str, tuple[float, Duration, dict[int, float]]] = {
        "equal": (8.0, equal(graph), {}),
        "forwards of 0.8 to 1.2": (8.0, spread, {}),
        "one forward in fifty takes 5": (8.0, straggling, {}),
        "two slow workers (1/2, 1/4)": (sum(speeds), lambda w, t: equal(graph)(w, t) / speeds[w], {}),
        "a worker dies half way": (7.5, equal(graph), {3: 27.4}),
    }
    print("\n| 72 windows, 8 workers | makespan over work / speed of all |")
    print("|---|---|")
    for name, (speed, duration, losses) in situations.items():
        summary, records = simulate(graph, 8, duration, losses)
        work = sum(r.end_s - r.start_s for r in records if r.task.traits.forward) if speed == 8.0 else 438.0
        print(f"| {name} | {summary['makespan_s'] / (work / speed):.3f} |")
    return records


def print_several_jobs() -> None:
    """Jobs of 72 windows together on 64 workers."""
    print("\n| jobs of 72 windows on 64 workers | makespan | busy |")
    print("|---|---|---|")
    plan = replace(uhd_plan(72), num_workers=64)
    for num_jobs in (1, 2, 4, 8):
        graph = graph_of(plan, DispatchMode.wavefront, num_jobs)
        summary, _ = simulate(graph, 64, equal(graph))
        print(f"| {num_jobs} | {summary['makespan_s']:g} | {summary['busy_fraction']:.1%} |")


def draw(ratios: dict[tuple[int, DispatchMode], list[float]], workers: list[int], path: Path) -> None:
    """Makespan over the larger bound against the number of workers."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xscale="log", xlabel="workers", ylabel="makespan over the larger bound")
    axes.set_xticks(workers, [str(count) for count in workers])
    axes.minorticks_off()
    for colour, num_windows in zip(("#4477aa", "#ee6677", "#228833"), GRIDS):
        for mode, style in zip(DispatchMode, ("--", "-")):
            label = f"{num_windows} windows, {mode.value}"
            axes.plot(workers, ratios[num_windows, mode], style, color=colour, marker="o", markersize=3, label=label)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print the tables and draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/simulated"))
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(print_scaling(arguments.workers), arguments.workers, arguments.out / "scaling.png")
    records = print_situations()
    title = "72 windows on 8 workers; worker 3 dies half way"
    draw_timeline(records, title).savefig(arguments.out / "timeline.png", dpi=120)
    print_several_jobs()


if __name__ == "__main__":
    main()
