"""What the plan says: its texts."""

from collections import Counter
from collections.abc import Iterator, Sequence

from fresco_dist.config import Config, DispatchMode
from fresco_dist.schedule.memory import WorkerMemory, worker_memory
from fresco_dist.schedule.outlook import MAX_SIMULATED, Outlook, better_grid, count_shared_forwards, look_ahead
from fresco_dist.schedule.plan import Plan
from fresco_dist.schedule.sharing import find_owners
from fresco_dist.schedule.tasks import Owners, run_graph


def describe(config: Config, plan: Plan, num_open: int = 1) -> Iterator[str]:
    """What is known at once: the plan, a worker's memory with so many canvases, what no schedule can beat."""
    yield describe_plan(plan)
    yield describe_memory(worker_memory(plan, config.model, num_open))
    work, path = plan.work_per_worker, plan.critical_path
    yield f"bounds    {round(work, 2):.8g} forwards of work per worker, {path:g} one after the other"


def describe_schedule(config: Config, plan: Plan) -> Iterator[str]:
    """The schedule, line by line as it is known; with `plan_only` also the tasks, the other mode, and what would help.

    Simulated, unless that would take long.
    """
    mode = config.dispatch.mode
    if config.plan_only:
        yield describe_tasks(plan, mode)
    if plan.num_forwards > MAX_SIMULATED:
        yield f"schedule  not simulated: {plan.num_forwards} forwards, more than {MAX_SIMULATED}; not below the bounds"
        return
    now = look_ahead(plan, mode)
    yield _describe_outlook(mode, now)
    if not config.plan_only:
        return
    yield from (_describe_outlook(other, look_ahead(plan, other)) for other in DispatchMode if other is not mode)
    if found := better_grid(config, plan, now):
        overlap, grid, then = found
        yield (
            f"hint      tiles.overlap={overlap:g} gives {len(grid.canvas.windows)} windows:"
            f" {then.length:g} forwards long (now {now.length:g}),"
            f" workers {then.busy:.0%} busy (now {now.busy:.0%})"
        )


def _describe_outlook(mode: DispatchMode, outlook: Outlook) -> str:
    return f"schedule  {mode.value}: {outlook.length:g} forwards long, workers {outlook.busy:.0%} busy"


def describe_plan(plan: Plan) -> str:
    """The plan in a few lines."""
    C, T, H, W = plan.canvas.latent_shape
    window = plan.canvas.windows[0].scaled(plan.spec.spatial_factor)
    factor = plan.spec.spatial_factor
    first = plan.canvas.windows[0]
    sides = zip(plan.canvas.overlap, (first.height, first.width), plan.canvas.canvas)
    num_single = plan.branches_per_step(plan.canvas).count(1)
    overlap = [0 if side == whole else cells for cells, side, whole in sides]
    lines = [
        f"image     {plan.image_px[0]} x {plan.image_px[1]} px",
        f"canvas    {plan.canvas_px[0]} x {plan.canvas_px[1]} px, {plan.num_frames} frames;"
        f" latent {C} x {T} x {H} x {W}",
        f"video     {plan.output_px[0]} x {plan.output_px[1]} px",
        f"windows   {len(plan.canvas.windows)} of {window.width} x {window.height} px,"
        f" overlap {overlap[1] * factor} x {overlap[0] * factor} px"
        + (f", {plan.canvas.batch} per forward" if plan.canvas.batch > 1 else ""),
        f"prior     {plan.native_px[0]} x {plan.native_px[1]} px, {plan.num_prior_steps} steps"
        if plan.num_prior_steps
        else "prior     not needed: its strength is 0 at every step",
        f"forwards  {plan.num_forwards}: {plan.canvas.num_steps} steps x {len(plan.canvas.windows)} windows"
        f" x {len(plan.branches)} branch{'es' if len(plan.branches) > 1 else ''}"
        + (f", but 1 at {num_single} steps" if 0 < num_single < plan.canvas.num_steps else "")
        + (f" + prior {plan.num_prior_forwards}" if plan.num_prior_steps else ""),
        f"VAE tiles {sum(map(len, plan.canvas.encode_tiles))} to encode, {sum(map(len, plan.decode_tiles))} to decode",
        f"workers   {plan.num_workers}",
    ]
    return "\n".join(lines + [f"note      {note}" for note in plan.notes])


def describe_memory(memory: WorkerMemory) -> str:
    """One line of the plan."""
    names = ("weights", "second_expert", "canvas", "forward", "decode")
    parts = {name.replace("_", " "): getattr(memory, name) / 1e9 for name in names}
    listed = ", ".join(f"{name} {value:.1f}" for name, value in parts.items() if value)
    first = f", before that a text encoder of {memory.text_encoder / 1e9:.1f}" if memory.text_encoder else ""
    return f"memory    about {memory.peak_gb:.1f} GB per worker: {listed}{first}"


def describe_tasks(plan: Plan, mode: DispatchMode) -> str:
    """Tasks by kind, in a line."""
    graph = run_graph([plan], [Owners.alone(0, plan.canvas.num_steps)], mode)
    counts = Counter(task.kind for task in graph.nodes)
    return "tasks     " + ", ".join(f"{kind} {count}" for kind, count in counts.items())


def describe_sharing(configs: Sequence[Config], plans: Sequence[Plan]) -> str:
    """How much of their work several runs share, in a line."""
    owners = find_owners(configs)
    different = len({owner.canvas[-1] for owner in owners})
    return (
        f"sweep     {len(plans)} points, {different} of them different: {count_shared_forwards(plans, owners)} forwards"
        f" instead of {sum(plan.num_forwards for plan in plans)}"
    )
