"""From which stored canvases jobs go on, so that those which share a level agree on where it begins. No I/O."""

from collections.abc import Callable, Sequence
from functools import partial

from fresco_dist.schedule.keys import Keys
from fresco_dist.schedule.plan import Plan


def going_on(plans: Sequence[Plan], keys: Sequence[Keys], is_stored: Callable[[str], bool]) -> list[Plan]:
    """What is left of jobs, each from the latest canvases that `is_stored` says of, by key.

    A canvas that one of them has to make on its way, since it needs what is before it, none of them goes on from.
    """
    unusable: set[str] = set()

    def is_usable(key: str) -> bool:
        return key not in unusable and is_stored(key)

    while True:
        latest = [partial(_latest, plan, of_job, is_usable) for plan, of_job in zip(plans, keys, strict=True)]
        left = [plan.going_on_from(of_plan) for plan, of_plan in zip(plans, latest)]
        made_again = _given(left, keys) & _made(left, keys)
        if not made_again:
            return left
        unusable |= made_again


def _latest(plan: Plan, keys: Keys, is_usable: Callable[[str], bool], level: int) -> int | None:
    """Before which step the latest canvas is; before the last one where it stops, which has the estimate."""
    of = plan.levels[level]
    for step in range(of.todo.stop, of.first_step, -1):
        if not of.shows_at(step) and is_usable(keys.levels[level].canvas[step - of.first_step]):
            return step
    return None


def _given(plans: Sequence[Plan], keys: Sequence[Keys]) -> set[str]:
    """The canvases that jobs go on from."""
    levels = [(of_job.levels[i].canvas, plan.levels[i]) for plan, of_job in zip(plans, keys) for i in plan.needed]
    return {chain[of.given - of.first_step] for chain, of in levels if of.given is not None}


def _made(plans: Sequence[Plan], keys: Sequence[Keys]) -> set[str]:
    """The canvases that they make and go on from; from one that is shown as a preview none does."""
    levels = [(of_job.levels[i].canvas, plan.levels[i]) for plan, of_job in zip(plans, keys) for i in plan.needed]
    made = [(chain, of, k + 1) for chain, of in levels for k in of.todo]
    return {chain[k - of.first_step] for chain, of, k in made if not of.shows_at(k)}
