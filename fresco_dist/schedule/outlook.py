"""What a plan's schedule will be, before it starts, and which windows fill the workers best.

Simulated with equal forwards, so in units of one forward.
"""

from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace

from fresco_dist.config import Config, DispatchMode, FusionConfig, InputError
from fresco_dist.method.builder import Shares
from fresco_dist.method.recipes import RECIPES
from fresco_dist.schedule.keys import Keys
from fresco_dist.schedule.memory import needed_gb
from fresco_dist.schedule.plan import Plan, make_plan, replan
from fresco_dist.schedule.simulate import simulate_run
from fresco_dist.schedule.spec import ModelSpec
from fresco_dist.schedule.tasks import open_canvases

MAX_SIMULATED = 10_000  # forwards, a few seconds of simulation
FIT_RANGE = 0.1  # by how much another overlap is looked for
MAX_FIT_BATCH = 8
WORTHWHILE = 0.02  # gain in busy fraction worth telling


@dataclass(frozen=True)
class Outlook:
    """A schedule: how long, in forwards one after the other, and how busy it keeps the workers."""

    length: float
    busy: float


def look_ahead(plan: Plan, mode: DispatchMode) -> Outlook:
    """The schedule of a plan, simulated; of one with too many forwards for that, as its bounds allow."""
    if plan.num_forwards <= MAX_SIMULATED:
        length = simulate_run(plan, mode)["makespan_s"]
    else:
        length = max(plan.work_per_worker, plan.critical_path)
    return Outlook(length, plan.work_per_worker / length if length else 0.0)


def choose_grid(
    config: Config,
    spec: ModelSpec,
    image_px: tuple[int, int],
    num_workers: int,
    gpu_memory_gb: float | None,
    points: Collection[tuple[Hashable, Hashable]] = (),
    shares: Shares | None = None,
) -> tuple[Config, Plan]:
    """The plan, with the overlap and the batch that the planner is asked to choose, and a configuration that says so.

    So the same run again, on any cluster, needs no choice. `points` are all jobs, see `open_canvases`. See `make_plan`.
    """
    plan = make_plan(config, spec, image_px, num_workers, shares)
    if config.tiles.fit:
        config, plan = _fit_overlap(config, plan)
    if config.tiles.batch is None:
        config, plan = _fit_batch(config, plan, gpu_memory_gb, points)
    return config, plan


def _fit_overlap(config: Config, plan: Plan) -> tuple[Config, Plan]:
    """The overlap, from the given one up to `FIT_RANGE` above, that keeps workers busiest: within 1% the smallest."""
    mode = config.dispatch.mode
    plans = dict(_grids(config, plan, config.tiles.overlap, config.tiles.overlap + FIT_RANGE))
    busy = {overlap: look_ahead(grid, mode).busy for overlap, grid in plans.items()}
    overlap = min(overlap for overlap, fraction in busy.items() if fraction >= max(busy.values()) - 0.01)
    return replace(config, tiles=replace(config.tiles, overlap=overlap, fit=False)), plans[overlap]


def _fit_batch(
    config: Config, plan: Plan, gpu_memory_gb: float | None, points: Collection[tuple[Hashable, Hashable]]
) -> tuple[Config, Plan]:
    """The most windows per forward that fit the GPU and keep the workers as busy, within 1%, as one does.

    1 if the GPU's memory, or what a forward needs of it, is not known.
    """
    plans = {batch: replan(config, plan, batch=batch) for batch in range(1, MAX_FIT_BATCH + 1)}
    num_open = {b: open_canvases(plans[b], config.dispatch.mode, points) for b in plans}
    fitting = []
    if gpu_memory_gb is not None and plan.spec.transformer is not None:
        fitting = [b for b in plans if needed_gb(plans[b], config, num_open[b]) <= gpu_memory_gb]
    length = {batch: look_ahead(plans[batch], config.dispatch.mode).length for batch in {1, *fitting}}
    batch = max(batch for batch in length if length[batch] <= 1.01 * length[1])
    plan = plans[batch]
    if gpu_memory_gb is None:
        note = "tiles.batch is 1 since no GPU is known here; cluster.gpu_memory_gb tells of one"
        plan = replace(plan, notes=(*plan.notes, note))
    return replace(config, tiles=replace(config.tiles, batch=batch)), plan


def better_grid(config: Config, plan: Plan, now: Outlook) -> tuple[float, Plan, Outlook] | None:
    """The overlap near the given one that keeps the workers busiest, if that is worth telling.

    Not looked for among so many forwards that it would take long.
    """
    if now.busy > 1.0 - WORTHWHILE:
        return None
    low, high = config.tiles.overlap - FIT_RANGE, config.tiles.overlap + FIT_RANGE
    grids = list(_grids(config, plan, low, high))
    if sum(grid.num_forwards for _, grid in grids) > MAX_SIMULATED:
        return None
    outlooks = [(overlap, grid, look_ahead(grid, config.dispatch.mode)) for overlap, grid in grids]
    best = max(outlooks, key=lambda entry: entry[2].busy)
    return best if best[2].busy >= now.busy + WORTHWHILE else None


def lighter_plans(config: Config, plan: Plan) -> Iterator[tuple[str, Plan]]:
    """What would cost less, as overrides, with its plan: windows that move, and a prior of half the steps.

    A recipe keeps the strengths of the one that it is offered for. Not looked for where there are so many forwards that
    it would take long.
    """
    if plan.num_forwards > MAX_SIMULATED:
        return
    enough, lighter, recipe = (1 - WORTHWHILE) * plan.cost, plan, []
    for name, fusion in _moving_recipes(config.fusion):
        changed = replace(config, fusion=fusion)
        with suppress(InputError):  # what the run's other settings rule out
            offered = replan(changed, plan)
            if offered.cost < enough:
                config, lighter, recipe = changed, offered, [f"fusion={name}"]
                yield recipe[0], lighter
    num_steps, is_own = config.sampler.num_steps, config.prior.num_steps is None and config.prior.sigmas is None
    takes_prior = any(source.level == 0 for level in lighter.levels for source in level.sources)
    if is_own and config.fusion.moves and num_steps >= 4 and takes_prior:
        half = -(-num_steps // 2)
        offered = replan(replace(config, prior=replace(config.prior, num_steps=half)), plan)
        if offered.cost < enough:
            yield " ".join([*recipe, f"prior.num_steps={half}"]), offered


def _moving_recipes(fusion: FusionConfig) -> Iterator[tuple[str, FusionConfig]]:
    """Recipes with the same parameters as this one's, whose windows move and its own do not."""
    names = {key.name for key in fields(fusion)}
    for name, recipe in RECIPES.items():
        same_keys = issubclass(recipe, type(fusion)) and {key.name for key in fields(recipe)} == names
        if same_keys and recipe.moves and not fusion.moves:
            yield name, recipe(**{key: getattr(fusion, key) for key in names} | {"method": name})


def count_shared_forwards(plans: Sequence[Plan], keys: Sequence[Keys]) -> int:
    """Model forwards of several jobs, each counted once that they share."""
    counted: dict[str, int] = {}
    for plan, of_job in zip(plans, keys, strict=True):
        for i in plan.needed:
            level, canvas = plan.levels[i], of_job.levels[i].canvas
            counted |= {canvas[k - level.first_step]: level.at(k).num_forwards for k in level.todo}
    return sum(counted.values())


def _grids(config: Config, plan: Plan, low: float, high: float) -> Iterator[tuple[float, Plan]]:
    """The smallest overlap, in hundredths from `low` to `high`, of each number of forwards, with its plan."""
    seen: set[int] = set()
    hundredths = range(max(0, round(100 * low)), min(95, round(100 * high)) + 1)
    for overlap in [config.tiles.overlap] * (low >= config.tiles.overlap) + [h / 100 for h in hundredths]:
        candidate = replan(config, plan, overlap=overlap)
        count = candidate.num_forwards
        if count not in seen:
            seen.add(count)
            yield overlap, candidate
