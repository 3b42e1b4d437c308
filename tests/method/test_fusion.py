"""The closed form against a generic float64 least-squares solver, and its limits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from fresco_dist.method.fixed_point import LIMIT, accumulate_, check_range, choose_scale, to_float
from fresco_dist.method.fusion import fuse_, resize_part, strength_map
from fresco_dist.method.grid import Window, place_windows
from fresco_dist.method.prediction import Prediction, x0_coefficients
from fresco_dist.method.weights import denominator, window_weight

CANVAS = (6, 8)
SHAPE = (2, 3, *CANVAS)  # C, T, H, W


def random_problem(seed: int, prediction: Prediction, canvas_shaped: bool):
    rng = np.random.default_rng(seed)
    windows = place_windows(CANVAS, (4, 4), (int(rng.integers(1, 5)), int(rng.integers(1, 5))))
    weights = [torch.tensor(rng.uniform(0.05, 1.0, (w.height, w.width)), dtype=torch.float32) for w in windows]
    predictions = [torch.tensor(rng.normal(size=(*SHAPE[:2], 4, 4)), dtype=torch.float32) for _ in windows]
    x, z = (torch.tensor(rng.normal(size=SHAPE), dtype=torch.float32) for _ in range(2))
    lam = torch.tensor(rng.uniform(0, 4, CANVAS), dtype=torch.float32) if canvas_shaped else float(rng.uniform(0, 4))
    a, b = x0_coefficients(prediction, float(rng.uniform(0.1, 0.9)))
    return windows, weights, predictions, x, z, lam, a, b


def sums(windows, weights, predictions):
    N = torch.zeros(SHAPE, dtype=torch.float64)
    for window, weight, prediction in zip(windows, weights, predictions):
        N[(..., *window.slices)] += weight.double() * prediction.double()
    return N, denominator(windows, weights, CANVAS)


@pytest.mark.parametrize("prediction", list(Prediction))
@pytest.mark.parametrize("canvas_shaped", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_fused_output_is_the_least_squares_solution(prediction, canvas_shaped, seed):
    """Every row of the stacked system is one term of Eq. 5; scipy knows nothing of the closed form."""
    windows, weights, predictions, x, z, lam, a, b = random_problem(seed, prediction, canvas_shaped)
    num_cells = int(np.prod(SHAPE))
    ids = np.arange(num_cells).reshape(SHAPE)
    rows, targets = [], []
    for window, weight, m_i in zip(windows, weights, predictions):
        for cell, root, target in zip(
            ids[(..., *window.slices)].ravel(),
            np.sqrt(np.broadcast_to(weight.numpy(), m_i.shape).astype(np.float64)).ravel(),
            m_i.double().numpy().ravel(),
        ):
            row = np.zeros(num_cells)
            row[cell] = root
            rows.append(row)
            targets.append(root * target)
    lam_full = np.broadcast_to(np.asarray(lam, dtype=np.float64), SHAPE).ravel()
    # lam (a x - b m - z)^2  =  (sqrt(lam) b m - sqrt(lam) (a x - z))^2
    for cell, (lam_cell, residual) in enumerate(zip(lam_full, (a * x.double() - z.double()).numpy().ravel())):
        row = np.zeros(num_cells)
        row[cell] = np.sqrt(lam_cell) * b
        rows.append(row)
        targets.append(np.sqrt(lam_cell) * residual)
    solution = lsq_linear(np.array(rows), np.array(targets), method="bvls").x.reshape(SHAPE)
    N, D = sums(windows, weights, predictions)
    fused = fuse_(N.float(), D, x, z, lam=lam, a=a, b=b)
    np.testing.assert_allclose(fused.numpy(), solution, rtol=0, atol=1e-6 * max(1.0, np.abs(solution).max()))


@pytest.mark.parametrize("prediction", list(Prediction))
def test_strong_prior_makes_the_clean_estimate_the_prior(prediction):
    windows, weights, predictions, x, z, _, a, b = random_problem(7, prediction, False)
    N, D = sums(windows, weights, predictions)
    fused = fuse_(N.float(), D, x, z, lam=1e8, a=a, b=b)
    torch.testing.assert_close(a * x - b * fused, z, rtol=0, atol=1e-4)


def test_equal_predictions_are_returned_unchanged_without_a_prior():
    windows, weights, _, x, _, _, a, b = random_problem(3, Prediction.flow_velocity, False)
    m = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    N, D = sums(windows, weights, [m[(..., *window.slices)] for window in windows])
    torch.testing.assert_close(fuse_(N.float(), D, x, None, lam=0.0, a=a, b=b), m, rtol=0, atol=1e-6)


def test_a_regional_strength_leaves_free_cells_to_multidiffusion():
    windows, weights, predictions, x, z, _, a, b = random_problem(5, Prediction.flow_velocity, False)
    N, D = sums(windows, weights, predictions)
    lam = torch.zeros(CANVAS)
    lam[:, :4] = 3.0
    fused = fuse_(N.float(), D, x, z, lam=lam, a=a, b=b)
    plain = fuse_(N.float(), D, x, None, lam=0.0, a=a, b=b)
    torch.testing.assert_close(fused[..., 4:], plain[..., 4:])
    assert float((fused[..., :4] - plain[..., :4]).abs().max()) > 0.1


@given(st.permutations(range(6)), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_fixed_point_sums_do_not_depend_on_order_or_on_who_adds(order, split):
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(2, 1, 4, 4, generator=generator) for _ in range(6)]
    weight = torch.rand(4, 4, generator=generator)
    scale = choose_scale(6.0, 1.0)

    def total(ids) -> torch.Tensor:
        result = torch.zeros(2, 1, 4, 4, dtype=torch.int32)
        for i in ids:
            accumulate_(result, parts[i], weight, scale)
        return result

    assert torch.equal(total(order[:split]) + total(order[split:]), total(range(6)))
    exact = sum(weight.double() * part.double() for part in parts)
    torch.testing.assert_close(to_float(total(order), scale).double(), exact, rtol=0, atol=6 / scale)


@pytest.mark.parametrize(("max_denominator", "coefficients"), [(1.0, 1.0), (4.0, 1.0), (4.0, 9.0), (3.999, 5.0)])
def test_fixed_point_scale_holds_the_largest_allowed_sum(max_denominator, coefficients):
    scale = choose_scale(max_denominator, coefficients)
    largest = LIMIT * max_denominator * coefficients * scale
    assert largest < 2**31 <= 2 * 1.01 * largest


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 2 * LIMIT, -2 * LIMIT])
def test_fixed_point_refuses_what_it_cannot_hold(bad):
    m = torch.zeros(1, 1, 2, 2)
    m[0, 0, 1, 1] = bad
    with pytest.raises(FloatingPointError, match="fixed-point range"):
        check_range(m)


@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 20), st.integers(1, 20), st.data())
def test_prior_on_a_cell_is_the_cut_out_of_the_resized_prior(height, width, canvas_height, canvas_width, data):
    """Trilinear and endpoint-aligned as torch does it, frame count unchanged."""
    z = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    canvas = (canvas_height, canvas_width)
    whole = F.interpolate(z[None], size=(3, *canvas), mode="trilinear", align_corners=True)[0]
    top, left = data.draw(st.integers(0, canvas[0] - 1)), data.draw(st.integers(0, canvas[1] - 1))
    cell = Window(top, left, data.draw(st.integers(1, canvas[0] - top)), data.draw(st.integers(1, canvas[1] - left)))
    ours = resize_part(z, Window(0, 0, height, width), (height, width), canvas, cell)
    torch.testing.assert_close(ours, whole[(..., *cell.slices)], rtol=0, atol=1e-5)


def test_window_weights_blend_two_windows_into_a_partition():
    windows = place_windows((4, 12), (4, 8), (4, 4))
    weights = [window_weight(window, (4, 12), (0, 4), 0.1) for window in windows]
    left, right = (weight[0] for weight in weights)
    assert float(left[:4].min()) == 1.0 and float(right[4:].min()) == 1.0  # cores and canvas borders
    torch.testing.assert_close(left[4:], right[:4].flip(0))


def test_strength_map_is_the_active_one_where_the_map_is_light():
    activity = torch.tensor([[True, False]])
    assert strength_map(0.0, 2.0, activity).tolist() == [[0.0, 2.0]]
