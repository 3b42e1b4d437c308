"""Prior strength over the steps."""

import pytest

from fresco_dist.method.level import Guide, Source
from fresco_dist.method.prior_strength import Schedule, prior_guides
from fresco_dist.method.recipes import RECIPES
from fresco_dist.method.recipes.fresco import Fresco
from fresco_dist.method.recipes.regional import Regional


def fresco(**changes) -> Fresco:
    return Fresco(**{"method": "fresco", "prior_strength": 2.0, "schedule": Schedule.cosine, "cutoff": 1.0, **changes})


def regional(**changes) -> Regional:
    values = {"prior_strength": 2.0, "schedule": Schedule.constant, "cutoff_active": 0.0, "cutoff_background": 0.2}
    return Regional(**{"method": "regional", **values, **changes})


def strengths(num_steps: int, **changes) -> list[float]:
    """Those of a recipe whose prior holds equally everywhere."""
    pairs = [guide.strengths if guide else (0.0, 0.0) for guide in fresco(**changes).guides(num_steps)]
    assert all(active == background for active, background in pairs)
    return [active for active, _ in pairs]


def test_strength_follows_the_decreasing_cosine():
    assert strengths(5) == pytest.approx([2.0, 1 + 2**-0.5, 1.0, 1 - 2**-0.5, 0.0])


def test_strength_is_constant_without_gating():
    assert strengths(4, schedule=Schedule.constant) == [2.0] * 4


@pytest.mark.parametrize(("cutoff", "active_steps"), [(0.0, 1), (0.2, 2), (0.39, 2), (0.4, 3), (1.0, 6)])
def test_strength_is_gated_at_the_cutoff(cutoff, active_steps):
    values = strengths(6, cutoff=cutoff, schedule=Schedule.constant)
    assert values == [2.0] * active_steps + [0.0] * (6 - active_steps)


def test_strength_of_a_single_step_is_the_full_one():
    assert strengths(1, cutoff=0.0) == [2.0]


def test_regional_strength_leaves_active_cells_first():
    """The paper's setting: of 6 steps, the foreground keeps the prior at the first, the background at two."""
    prior = Source(level=0)
    assert regional().guides(6) == (Guide(prior, (2.0, 2.0)), Guide(prior, (0.0, 2.0)), *[None] * 4)


@pytest.mark.parametrize(
    ("recipe", "needed"),
    [
        (fresco(), True),
        (fresco(prior_strength=0.0), False),
        (regional(), True),
        (regional(prior_strength=0.0), False),
        (RECIPES["multidiffusion"](method="multidiffusion"), False),
        (RECIPES["spot"](method="spot"), False),
    ],
)
def test_prior_is_made_only_where_it_counts(recipe, needed):
    guides = recipe.guides(6)
    assert len(guides) == 6 and any(guide is not None for guide in guides) is needed


def test_prior_is_taken_from_the_level_that_is_named():
    assert {guide.source for guide in prior_guides(1.0, Schedule.constant, (1.0, 1.0), 3, Source(2))} == {Source(2)}
