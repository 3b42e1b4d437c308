"""What the benchmark of prompts by region measures by: wanted motions, masks and prompts, without a model."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "regions.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("regions_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_truth_moves_as_the_regions_are_told(benchmark):
    scene, wanted, regions = benchmark.make_regions(0)
    left, right, still = regions
    assert "to the left" in left.prompt and "to the right" not in left.prompt
    assert "to the right" in right.prompt and "to the left" not in right.prompt
    assert "still" in still.prompt and "to the" not in still.prompt
    assert np.logical_or.reduce([region.mask for region in regions]).all()
    assert all((region.mask[region.travelled]).all() for region in regions)
    figures = benchmark.measure([wanted] * 3, regions)
    assert figures["speed, left"] < -0.5 and figures["speed, right"] > 0.5 and figures["directions"] == 1
    assert figures["change, still"] < 0.1 < figures["change, left and right"]
    assert benchmark.measure([wanted[::-1]] * 3, regions)["directions"] == 0


def test_jobs_differ_in_how_prompts_share_the_picture_alone(benchmark, tmp_path):
    scene, _, regions = benchmark.make_regions(0)
    one, blend, dominant = benchmark.make_jobs(0, tmp_path, scene, regions)
    assert one.plan.prompts == (0,) and blend.plan.prompts == dominant.plan.prompts == (1, 2, 3)
    assert blend.prompts[0] == one.prompts[0] and "to the" not in one.prompts[0]
    forwards = [job.plan.canvas.num_forwards for job in (one, dominant, blend)]
    assert forwards[0] == forwards[1] < forwards[2]
    assert all((a == b).all() for a, b in zip(one.pictures, blend.pictures))
