"""What each recipe costs at UHD, from plan and simulator: forwards, busy share, seconds for given forward times.

A forward is that of one window of 1280 x 720 px; others cost their share of its area (with attention less than that).
Only forwards take time.

    python benchmarks/recipes.py [--workers 1 8 32] [--forward-s 8.4 13.2]
"""

import argparse

from fresco_dist import models
from fresco_dist.config import DispatchMode
from fresco_dist.schedule.plan import Plan, make_plan
from fresco_dist.schedule.simulate import simulate_run
from fresco_dist.settings.schema import compose_config

RECIPES = (
    "fusion=multidiffusion",
    "fusion=fresco",
    "fusion=fresco tiles.overlap=0.25",
    "fusion=spot",
    "fusion=fresco_spot",
    "fusion=fresco_spot tiles.border=inside",
    "fusion=fresco_spot tiles.overlap_steps=1",
    "fusion=fresco_spot prior.num_steps=3",
    "fusion=fresco_spot prior.num_steps=2",
    "fusion=fresco_spot prior.num_steps=3 prior.area=399360",
    "fusion=demofusion",
    "fusion=demofusion tiles.overlap=0.25",
    "fusion=dynamic_scaler",
    "fusion=dynamic_scaler tiles.overlap=0.25",
    "fusion=supergen",
    "fusion=freescale prior.levels=2",
    "fusion=progressive",
    "fusion=progressive tiles.overlap=0.25",
    "fusion=progressive tiles.overlap=0.25 fusion.max_variance=0.0015",
)


def plan_of(overrides: str, num_workers: int) -> Plan:
    """Of a clip of 3840 x 2160 px in 6 steps, with windows and thumbnail of 1280 x 720 px if nothing else is said."""
    config = compose_config("model=synthetic", *overrides.split())
    return make_plan(config, models.read_spec(config.model), (3840, 2160), num_workers)


def between(ends: list[str]) -> str:
    """A range, or what both its ends are."""
    return " to ".join(dict.fromkeys(ends))


def describe(plan: Plan, forward_s: list[float]) -> str:
    """How long a run is, in forwards and in seconds, and how busy it keeps the workers."""
    schedule = simulate_run(plan, DispatchMode.wavefront)
    length = schedule["makespan_s"]
    seconds = " / ".join(f"{length * s:.0f} s" for s in forward_s)
    return f"{length:.4g}; {schedule['busy_fraction']:.0%}; {seconds}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--forward-s", type=float, nargs="+", default=[8.4, 13.2], help="of one full window")
    arguments = parser.parse_args()
    seconds = " / ".join(f"{s:g} s" for s in arguments.forward_s)
    columns = [f"{n} GPUs: forwards; busy; {seconds}" for n in arguments.workers]
    print(f"| settings | work | {' | '.join(columns)} |")
    print("|---" * (2 + len(columns)) + "|")
    for overrides in RECIPES:
        ranges = [(plan.least, plan) for plan in (plan_of(overrides, n) for n in arguments.workers)]
        work = between([f"{plan.cost:.4g}" for plan in ranges[0]])
        cells = [between([describe(plan, arguments.forward_s) for plan in plans]) for plans in ranges]
        print(f"| `{overrides}` | {work} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
