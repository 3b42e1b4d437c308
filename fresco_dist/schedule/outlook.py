"""What to expect of a run before it starts: its tasks and schedule, and which windows would fill the workers better.

Simulated with equal forwards, so in units of one forward.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from fresco_dist.config import Config, DispatchMode
from fresco_dist.schedule.graph import Graph
from fresco_dist.schedule.memory import needed_gb
from fresco_dist.schedule.plan import Plan, make_plan
from fresco_dist.schedule.sharing import find_owners
from fresco_dist.schedule.simulate import simulate_run
from fresco_dist.schedule.tasks import Owners, run_graph

FIT_RANGE = 0.1  # by how much another overlap is looked for
MAX_FIT_BATCH = 8
WORTHWHILE = 0.02  # gain in busy fraction worth telling


def describe_schedule(plan: Plan, modes: list[DispatchMode]) -> str:
    """The schedule in a line per dispatch mode, after its bounds."""
    summaries = {mode: simulate_run(plan, mode) for mode in modes}
    bounds = summaries[modes[0]]
    lines = [
        f"bounds    {bounds['lower_bound_s']:.4g} forwards of work per worker,"
        f" {bounds['critical_path_s']:g} one after the other"
    ]
    for mode, summary in summaries.items():
        length, busy = summary["makespan_s"], summary["busy_fraction"]
        lines.append(f"schedule  {mode.value}: {length:g} forwards long, workers {busy:.0%} busy")
    return "\n".join(lines)


def describe_tasks(plan: Plan, mode: DispatchMode) -> str:
    """Tasks by kind, in a line."""
    graph = run_graph([plan], [Owners.alone(0, plan.canvas.num_steps)], mode)
    counts = Counter(task.kind for task in graph.nodes)
    return "tasks     " + ", ".join(f"{kind} {count}" for kind, count in counts.items())


def describe_sharing(configs: Sequence[Config], plans: Sequence[Plan]) -> str:
    """How much of their work several runs share, in a line."""
    owners = find_owners(configs)
    forwards = count_forwards(run_graph(plans, owners, configs[0].dispatch.mode))
    different = len({owner.canvas[-1] for owner in owners})
    return (
        f"sweep     {len(plans)} points, {different} of them different: {forwards:g} forwards"
        f" instead of {sum(plan.num_forwards for plan in plans)}"
    )


def count_forwards(graph: Graph) -> float:
    """Model forwards in a graph, in forwards of one window."""
    return sum(node.cost for task, node in graph.nodes.items() if task.traits.forward)


def describe_advice(config: Config, plan: Plan) -> str:
    """Which overlap near the given one keeps the workers busiest, if that is worth telling; else empty."""
    mode = config.dispatch.mode
    now = simulate_run(plan, mode)
    low, high = config.tiles.overlap - FIT_RANGE, config.tiles.overlap + FIT_RANGE
    best = max(_grids(config, plan, low, high), key=lambda grid: simulate_run(grid[1], mode)["busy_fraction"])
    overlap, candidate = best
    summary = simulate_run(candidate, mode)
    if summary["busy_fraction"] < now["busy_fraction"] + WORTHWHILE:
        return ""
    return (
        f"hint      tiles.overlap={overlap:g} gives {len(candidate.canvas.windows)} windows:"
        f" {summary['makespan_s']:g} forwards long (now {now['makespan_s']:g}),"
        f" workers {summary['busy_fraction']:.0%} busy (now {now['busy_fraction']:.0%})"
    )


def fit_overlap(config: Config, plan: Plan) -> Config:
    """The configuration with the overlap, from the given one up to `FIT_RANGE` above, that keeps workers busiest.

    Of those within 1%, the smallest. `tiles.fit` is false in it: the same run again, on any cluster.
    """
    mode = config.dispatch.mode
    grids = _grids(config, plan, config.tiles.overlap, config.tiles.overlap + FIT_RANGE)
    busy = {overlap: simulate_run(grid, mode)["busy_fraction"] for overlap, grid in grids}
    overlap = min(overlap for overlap, fraction in busy.items() if fraction >= max(busy.values()) - 0.01)
    return replace(config, tiles=replace(config.tiles, overlap=overlap, fit=False))


def fit_batch(config: Config, plan: Plan, gpu_memory_gb: float | None) -> Config:
    """The configuration with the most windows per forward that fit the GPU and keep the workers as busy as one does.

    Within 1%; 1 if the GPU's memory, or what a forward needs of it, is not known.
    """
    plans = {batch: replace(plan, canvas=replace(plan.canvas, batch=batch)) for batch in range(1, MAX_FIT_BATCH + 1)}
    known = gpu_memory_gb is not None and plan.spec.transformer is not None
    fitting = [b for b in plans if known and needed_gb(plans[b], config.model) <= gpu_memory_gb]
    length = {batch: simulate_run(plans[batch], config.dispatch.mode)["makespan_s"] for batch in {1, *fitting}}
    batch = max(batch for batch in length if length[batch] <= 1.01 * length[1])
    return replace(config, tiles=replace(config.tiles, batch=batch))


def _grids(config: Config, plan: Plan, low: float, high: float) -> Iterator[tuple[float, Plan]]:
    """The smallest overlap, in hundredths from `low` to `high`, of each window count, with its plan."""
    seen: set[int] = set()
    hundredths = range(max(0, round(100 * low)), min(95, round(100 * high)) + 1)
    for overlap in [config.tiles.overlap] * (low >= config.tiles.overlap) + [h / 100 for h in hundredths]:
        tiles = replace(config.tiles, overlap=overlap)
        candidate = make_plan(
            replace(config, tiles=tiles), plan.spec, plan.image_px, plan.num_workers, plan.prior_steps
        )
        count = len(candidate.canvas.windows)
        if count not in seen:
            seen.add(count)
            yield overlap, candidate
