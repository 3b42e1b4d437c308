"""What the plan says: its texts."""

from collections import Counter
from collections.abc import Iterator, Sequence

from fresco_dist.config import Config, DispatchMode
from fresco_dist.method.level import Level
from fresco_dist.schedule.keys import Keys, make_keys
from fresco_dist.schedule.memory import WorkerMemory, worker_memory
from fresco_dist.schedule.outlook import (
    MAX_SIMULATED,
    Outlook,
    better_grid,
    count_shared_forwards,
    lighter_plans,
    look_ahead,
)
from fresco_dist.schedule.plan import Plan
from fresco_dist.schedule.tasks import run_graph


def describe(config: Config, plan: Plan, num_open: int = 1) -> Iterator[str]:
    """What is known at once: the plan, a worker's memory with so many canvases, what no schedule can beat."""
    yield describe_plan(plan)
    yield describe_memory(worker_memory(plan, config, num_open))
    work, path = plan.work_per_worker, plan.critical_path
    most = "with the most, " if _least(plan) else ""
    yield f"bounds    {most}{_rounded(work)} forwards of work per worker, {_rounded(path)} one after the other"


def describe_schedule(config: Config, plan: Plan) -> Iterator[str]:
    """The schedule, line by line as it is known; with `plan_only` also the tasks, the other mode, and what would help.

    Simulated, unless that would take long.
    """
    mode = config.dispatch.mode
    if config.plan_only:
        yield describe_tasks(plan, mode)
    if not plan.num_forwards:
        yield "schedule  no forwards are left"
        return
    if plan.num_forwards > MAX_SIMULATED:
        yield f"schedule  not simulated: {plan.num_forwards} forwards, more than {MAX_SIMULATED}; not below the bounds"
        return
    now = look_ahead(plan, mode)
    yield _describe_outlook(mode, now)
    if plan.least.num_forwards < plan.num_forwards:
        then = look_ahead(plan.least, mode)
        yield f"          as that is with the most forwards; with the fewest {_rounded(then.length)} forwards long"
    if not config.plan_only:
        return
    yield from (_describe_outlook(other, look_ahead(plan, other)) for other in DispatchMode if other is not mode)
    is_begun = any(level.given is not None for level in plan.levels)  # then its windows are chosen
    if not is_begun and (found := better_grid(config, plan, now)):
        overlap, grid, then = found
        yield (
            f"hint      tiles.overlap={overlap:g} gives {describe_windows(grid)}:"
            f" {_rounded(then.length)} forwards long (now {_rounded(now.length)}),"
            f" workers {then.busy:.0%} busy (now {now.busy:.0%})"
        )
    shortest = now.length
    for overrides, lighter in lighter_plans(config, plan) if not is_begun else ():
        then = look_ahead(lighter, mode)
        if then.length > shortest:
            continue
        shortest = then.length
        yield (
            f"hint      {overrides}: {_rounded(lighter.cost / plan.cost)} of the work,"
            f" {_rounded(then.length)} forwards long (now {_rounded(now.length)})"
        )


def _describe_outlook(mode: DispatchMode, outlook: Outlook) -> str:
    return f"schedule  {mode.value}: {_rounded(outlook.length)} forwards long, workers {outlook.busy:.0%} busy"


def _rounded(forwards: float) -> str:
    """Costs are shares of a forward."""
    return f"{round(forwards, 2):.8g}" if forwards >= 0.1 or not forwards else f"{forwards:.2g}"


def describe_windows(plan: Plan) -> str:
    """How many windows each step has."""
    return f"{_counts(plan.canvas)} windows"


def _counts(level: Level) -> str:
    counts = sorted({len(step.grid.windows) for step in level.steps})
    return " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]])))


def _describe_grid(plan: Plan, level: Level) -> str:
    """The windows of a level: how many of which size, and how they lie at which steps."""
    factor, steps = plan.spec.spatial_factor, level.steps
    windows = [window for step in steps for window in step.grid.windows]
    height, width = (max(sides) for sides in zip(*((window.height, window.width) for window in windows)))
    moves = len({step.grid.windows for step in steps}) > 1
    overlap = [
        0 if side == whole else cells
        for cells, side, whole in zip(steps[0].grid.overlap, (height, width), level.canvas)
    ]
    size = f"{width * factor} x {height * factor} px"
    overlapping = f"overlap {overlap[1] * factor} x {overlap[0] * factor} px"
    if not moves and any((window.height, window.width) != (height, width) for window in windows):
        return f"{_counts(level)} of {size} at most, side by side"
    if not moves:
        return f"{_counts(level)} of {size}, {overlapping}"
    overlaps = [any(step.grid.overlap) for step in steps]
    num_overlapping = sum(overlaps)
    if all(overlaps) or any(overlaps[num_overlapping:]):
        return f"{_counts(level)} of {size} at most, which differ from step to step"
    first = f"; in the first {num_overlapping} steps {overlapping}" if num_overlapping else ""
    covered = sum(window.height * window.width for window in steps[-1].grid.windows)
    inside = ", moved inside at the border" if covered > level.canvas[0] * level.canvas[1] else ""
    return f"{_counts(level)} of {size} at most, side by side{inside}, shifted at each step{first}"


def describe_plan(plan: Plan) -> str:
    """The plan in a few lines, as if nothing of it were stored, and what is."""
    left, plan = plan, plan.whole
    level = plan.canvas
    C, T, H, W = level.latent_shape
    canvas_px = plan.size_px(plan.top)
    steps = [level.at(k) for k in level.todo]
    num_windows = sum(len(step.grid.windows) for step in steps)
    same = num_windows == len(steps[0].grid.windows) * len(steps)
    each = f"{len(steps)} steps x {describe_windows(plan)}" if same else f"{num_windows} windows in all"
    below = [i for i in plan.needed if i < plan.top]
    lines = [
        f"image     {plan.image_px[0]} x {plan.image_px[1]} px",
        f"canvas    {canvas_px[0]} x {canvas_px[1]} px, {plan.num_frames} frames; latent {C} x {T} x {H} x {W}",
        f"video     {plan.output_px[0]} x {plan.output_px[1]} px",
        f"windows   {_describe_grid(plan, level)}" + (f", {plan.batch} per forward" if plan.batch > 1 else ""),
        *([_describe_below(plan, i) for i in below] or ["prior     not needed: its strength is 0 at every step"]),
        f"forwards  {_least(plan)}{plan.num_forwards}: {each} x {_describe_branches(plan)}"
        + "".join(f" + {_name(i)} {plan.levels[i].num_forwards}" for i in below)
        + ("" if _is_plain(plan) else f"; together as long as {_rounded(plan.cost)} of full windows"),
        f"VAE tiles {sum(map(len, level.encode_tiles))} to encode, {sum(map(len, level.decode_tiles))} to decode",
        f"workers   {plan.num_workers}",
    ]
    if plan.shares:
        lines.append(f"regions   {_describe_regions(plan)}")
    if plan.canvas.until is not None:
        lines.append(f"stop      after step {plan.canvas.until} of {plan.canvas.num_steps}, with a preview")
    given = {i: level for i, level in enumerate(left.levels) if level.given is not None and i in left.needed}
    if given:
        names = [f"{_before(plan, i)}step {of.given} of {of.num_steps}" for i, of in given.items()]
        lines.append(
            f"stored    {' and '.join(reversed(names))}: {left.num_forwards} of {plan.num_forwards} forwards left"
        )
    return "\n".join(lines)


def _least(plan: Plan) -> str:
    """What goes before the number of forwards, where it is found out on the way how many there are."""
    least = plan.least.num_forwards
    return f"{least} to " if least < plan.num_forwards else ""


def _describe_branches(plan: Plan) -> str:
    """The prompts that the windows of the video are predicted for."""
    level = plan.canvas
    batches = [(step, batch) for step in (level.at(k) for k in level.todo) for batch in step.batches]
    numbers = {len(batch.branches) for _, batch in batches}
    if plan.shares and len(numbers) > 1:
        num_windows = sum(len(batch.windows) for _, batch in batches)
        return f"{_rounded(level.num_forwards / num_windows)} branches on average"
    most, single = max(numbers), [k for k in level.todo if all(len(b.branches) == 1 for b in level.at(k).batches)]
    told = f"{most} branch{'es' if most > 1 else ''}"
    return told + (f", but 1 at {len(single)} steps" if most > 1 and single else "")


def _describe_regions(plan: Plan) -> str:
    """How the prompts share the picture."""
    level = plan.canvas
    batches = [batch for k in level.todo for batch in level.at(k).batches]
    negative = len(plan.shares[-1])
    counts = [sum(branch.prompt != negative for branch in batch.branches) for batch in batches]
    num_windows = sum(len(batch.windows) for batch in batches)
    num_prompts = sum(count * len(batch.windows) for count, batch in zip(counts, batches))
    how = "blended" if any(branch.shared for batch in batches for branch in batch.branches) else "one for each window"
    used = len({branch.prompt for batch in batches for branch in batch.branches} - {negative})
    return f"{used} prompts by region, {how}: {_rounded(num_prompts / num_windows)} per window on average"


def _name(level: int) -> str:
    """Of a level below the last."""
    return f"level {level}" if level else "prior"


def _before(plan: Plan, level: int) -> str:
    """What goes before a step's number."""
    return "" if level == plan.top else f"{_name(level)}, "


def _describe_below(plan: Plan, index: int) -> str:
    level, (width, height) = plan.levels[index], plan.size_px(index)
    windows = "" if level.is_one_window else f", windows {_describe_grid(plan, level)}"
    return f"{_name(index):<10}{width} x {height} px, {_describe_steps(level)}{windows}"


def _describe_steps(level: Level) -> str:
    count = len(level.todo)
    return (
        f"{count} steps" if count == level.num_steps else f"{count} of {level.num_steps} steps, from {level.todo.start}"
    )


def _is_plain(plan: Plan) -> bool:
    """Whether each forward is as long as that of a full window."""
    return abs(plan.cost - plan.num_forwards) <= 0.001 * plan.num_forwards


def describe_memory(memory: WorkerMemory) -> str:
    """One line of the plan."""
    names = ("weights", "second_expert", "canvas", "forward", "decode")
    parts = {name.replace("_", " "): getattr(memory, name) / 1e9 for name in names}
    listed = ", ".join(f"{name} {value:.1f}" for name, value in parts.items() if value)
    first = f", before that a text encoder of {memory.text_encoder / 1e9:.1f}" if memory.text_encoder else ""
    return f"memory    about {memory.peak_gb:.1f} GB per worker: {listed}{first}"


def describe_tasks(plan: Plan, mode: DispatchMode) -> str:
    """Tasks by kind, in a line."""
    graph = run_graph([plan], [make_keys(plan)], mode)
    counts = Counter(task.kind for task in graph.nodes)
    return "tasks     " + ", ".join(f"{kind} {count}" for kind, count in counts.items())


def describe_sharing(plans: Sequence[Plan], keys: Sequence[Keys]) -> str:
    """How much of their work several runs share, in a line."""
    different = len({of_job.levels[-1].last for of_job in keys})
    return (
        f"sweep     {len(plans)} points, {different} of them different: {count_shared_forwards(plans, keys)} forwards"
        f" instead of {sum(plan.num_forwards for plan in plans)}"
    )
