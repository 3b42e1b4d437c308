"""What the evaluation of canvases adds to the metrics, on motion that is known."""

from dataclasses import replace

import numpy as np
import pytest

from fresco_dist.training.evaluate_canvas import direction_agreement, interval, travellers
from fresco_dist.training.pictures import open_scene


@pytest.mark.parametrize("ways, agreement", [((1, 1), 1.0), ((1, -1), 0.0)])
def test_direction_agreement_of_ground_truth(ways, agreement):
    scene = open_scene(0, 384, 256)
    panels = [panel for panel in scene.panels if any(thing.kind == "figures" for thing in panel.things)][:2]
    for panel, way in zip(panels, ways):
        panel.things = [replace(thing, sign=way) for thing in panel.things if thing.kind == "figures"]
    scene = replace(scene, panels=panels)
    things = travellers(scene, (192, 128))
    assert {panel for panel, _, _ in things} == {0, 1}
    assert direction_agreement(scene.frames(9, size=(192, 128)), things) == agreement


def test_direction_agreement_needs_two_panels():
    scene = open_scene(0, 384, 256)
    things = travellers(replace(scene, panels=scene.panels[:1]), (192, 128))
    assert things and np.isnan(direction_agreement(scene.frames(2, size=(192, 128)), things))


def test_interval_is_students_over_the_numbers():
    mean, half = interval(np.array([1.0, 2.0, 3.0, np.nan]))
    assert mean == 2.0 and half == pytest.approx(4.3027 / 3**0.5, abs=1e-3)
