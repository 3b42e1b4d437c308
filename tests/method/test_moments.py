"""Mean and deviation in fixed point: against torch's own, and whatever a canvas is cut into."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fresco_dist.method.moments import mean_and_deviation, moments, standardising


@given(st.integers(0, 2**32 - 1), st.floats(-5, 5), st.floats(0.1, 4))
def test_moments_are_those_of_the_whole_canvas_however_it_is_cut(seed, mean, deviation):
    x = torch.randn(4, 3, 20, 30, generator=torch.Generator().manual_seed(seed)) * deviation + mean
    generator = random.Random(seed)
    rows = sorted(generator.sample(range(1, 20), 3))
    parts = [moments(part) for part in x.tensor_split(rows, dim=2)]
    generator.shuffle(parts)
    assert mean_and_deviation(parts) == mean_and_deviation([moments(x)])
    expected = [float(value) for value in torch.std_mean(x.double(), correction=0)[::-1]]
    assert mean_and_deviation(parts) == pytest.approx(expected, abs=1e-4)


def test_standardised_canvas_has_the_moments_of_the_other_one():
    x, other = torch.randn(2, 50, 50) * 3 + 1, torch.randn(2, 20, 20) * 0.5 - 2
    gain, offset = standardising([moments(x)], [moments(other)])
    ours, wanted = (torch.std_mean(y.double(), correction=0) for y in (x * gain + offset, other))
    torch.testing.assert_close(torch.stack(ours), torch.stack(wanted), rtol=0, atol=1e-4)


def test_canvas_without_any_deviation_is_moved_alone():
    assert standardising([moments(torch.full((2, 2), 3.0))], [moments(torch.tensor([1.0, 2.0]))]) == (1.0, -1.5)
