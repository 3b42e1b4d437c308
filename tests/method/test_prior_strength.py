"""Prior strength over the steps."""

import dataclasses

import pytest

from fresco_dist.config import FusionConfig, FusionMethod, Schedule
from fresco_dist.method.level import Guide, Source
from fresco_dist.method.prior_strength import prior_guides, prior_strengths

FRESCO = FusionConfig(
    method=FusionMethod.fresco,
    prior_strength=2.0,
    schedule=Schedule.cosine,
    cutoff=1.0,
    cutoff_active=0.0,
    cutoff_background=0.2,
)


def places(num_steps: int, **changes) -> list[tuple[float, float]]:
    """Where motion is expected, and elsewhere."""
    fusion = dataclasses.replace(FRESCO, **changes)
    return [prior_strengths(fusion, i, num_steps) for i in range(num_steps)]


def strengths(num_steps: int, **changes) -> list[float]:
    """Where they are the same everywhere."""
    values = places(num_steps, **changes)
    assert all(active == background for active, background in values)
    return [active for active, _ in values]


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
    values = places(6, method=FusionMethod.regional, schedule=Schedule.constant)
    assert values == [(2.0, 2.0), (0.0, 2.0)] + [(0.0, 0.0)] * 4


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, True),
        ({"prior_strength": 0.0}, False),
        ({"method": FusionMethod.multidiffusion}, False),
        ({"method": FusionMethod.regional}, True),
        ({"method": FusionMethod.regional, "prior_strength": 0.0}, False),
    ],
)
def test_prior_is_made_only_where_it_counts(changes, needed):
    guides = prior_guides(dataclasses.replace(FRESCO, **changes), 6)
    assert len(guides) == 6 and any(guide is not None for guide in guides) is needed


def test_prior_guides_the_steps_at_which_it_counts_somewhere():
    fusion = dataclasses.replace(FRESCO, method=FusionMethod.regional, schedule=Schedule.constant)
    prior = Source(level=0)
    assert prior_guides(fusion, 6) == (Guide(prior, (2.0, 2.0)), Guide(prior, (0.0, 2.0)), *[None] * 4)
