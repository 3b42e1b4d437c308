"""What the evaluation of canvases adds to the metrics, on light that is known."""

import numpy as np
import pytest

from fresco_dist.training.evaluate_canvas import interval, light_changes, measure_light
from fresco_dist.training.pictures import open_scene


@pytest.mark.parametrize("sign", [-1, 1])
def test_light_of_ground_truth_is_right_everywhere(sign):
    frames = open_scene(0, 192, 128, light_sign=sign).frames(9)
    figures = measure_light(frames, sign)
    assert figures["light_right"] == 1.0 and figures["light_change"] > 20
    assert measure_light(frames, -sign)["light_right"] == 0.0
    assert measure_light(frames[:1], sign) == {"light_change": 0.0, "light_right": 0.0, "light_unevenness": 0.0}


def test_light_of_one_part_is_uneven():
    frames = np.full((9, 128, 192, 3), 100, dtype=np.uint8)
    frames[1:, :32, 48:96] = 180
    changes = light_changes(frames)
    assert changes == pytest.approx([0, 80, *[0] * 14], abs=1e-3)
    assert measure_light(frames, 1)["light_unevenness"] == pytest.approx(changes.std())


def test_interval_is_students_over_the_numbers():
    mean, half = interval(np.array([1.0, 2.0, 3.0, np.nan]))
    assert mean == 2.0 and half == pytest.approx(4.3027 / 3**0.5, abs=1e-3)
