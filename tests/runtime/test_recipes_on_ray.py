"""Every recipe: the same bits in one process and on Ray, in both modes, when a worker is lost, and after a stop."""

from signal import SIGKILL

import pytest
from conftest import run_json
from faults import inject, sends  # noqa: F401 (fixture)

RECIPES = {
    "multidiffusion": ["fusion=multidiffusion"],
    "spot": ["fusion=spot", "tiles.overlap_steps=1"],
    "fresco_spot": ["fusion=fresco_spot", "tiles.border=inside", "prior.sigmas=[1,0.5]"],
    "cascade": ["fusion=cascade", "fusion.local_priors=true", "prior.levels=2", "prior.area=512"],
    "demofusion": ["fusion=demofusion", "prior.levels=2", "prior.area=512"],
    "dynamic_scaler": ["fusion=dynamic_scaler", "fusion.motion_guidance=[0.5]", "sampler.num_steps=4"],
    "supergen": ["fusion=supergen"],
    "progressive": ["fusion=progressive", "sampler.num_steps=6", "prior.levels=1", "fusion.max_variance=0.0082"],
}  # fresco and regional: test_ray.py


STOPS = {"dynamic_scaler": 2, "supergen": 2, "progressive": 5}  # after which step, of canvases that begin later


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_has_the_same_bits_wherever_it_runs(command, ray_command, folder, tmp_path, inject, recipe):  # noqa: F811
    overrides, stop = ["tiles.window=[32,32]", "sampler.guidance_scale=2", *RECIPES[recipe]], STOPS.get(recipe, 1)
    done = command(*overrides)
    assert done.returncode == 0, done.stderr
    expected = run_json(folder)["latents_sha256"]
    if recipe == "progressive":  # some windows go up first, and others do not
        assert "forwards  48 to 68: " in done.stdout and 49 < run_json(folder)["work"] < 69
        assert 0 < run_json(folder)["windows_up_first"] < 10 and run_json(folder)["variance"]["median"] < 0.01

    def digest(name: str) -> str:
        return run_json(tmp_path / name)["latents_sha256"]

    stopped = [*overrides, f"hydra.run.dir={tmp_path / 'stopped'}"]
    assert command(*stopped, f"sampler.stop_after={stop}").returncode == 0
    done = command(*stopped)
    assert done.returncode == 0 and f"stored    step {stop} of " in done.stdout, done.stdout + done.stderr
    assert digest("stopped") == expected
    on_ray = [*overrides, "cluster.num_workers=3"]
    done = ray_command(*on_ray, "dispatch.mode=allreduce", f"hydra.run.dir={tmp_path / 'allreduce'}")
    assert done.returncode == 0 and digest("allreduce") == expected, done.stderr
    inject(sends(SIGKILL), "predict", first=2)
    done = ray_command(*on_ray, f"hydra.run.dir={tmp_path / 'killed'}")
    assert done.returncode == 0 and digest("killed") == expected, done.stderr
    assert "rank 0 died" in done.stdout
