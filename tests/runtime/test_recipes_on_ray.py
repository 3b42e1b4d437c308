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
}  # fresco and regional: test_ray.py


@pytest.mark.parametrize("overrides", RECIPES.values(), ids=RECIPES)
def test_recipe_has_the_same_bits_wherever_it_runs(command, ray_command, folder, tmp_path, inject, overrides):  # noqa: F811
    overrides = ["tiles.window=[32,32]", "sampler.guidance_scale=2", *overrides]
    assert command(*overrides).returncode == 0
    expected = run_json(folder)["latents_sha256"]

    def digest(name: str) -> str:
        return run_json(tmp_path / name)["latents_sha256"]

    stopped = [*overrides, f"hydra.run.dir={tmp_path / 'stopped'}"]
    assert command(*stopped, "sampler.stop_after=1").returncode == 0
    done = command(*stopped)
    assert done.returncode == 0 and "stored    step 1 of 3" in done.stdout
    assert digest("stopped") == expected
    on_ray = [*overrides, "cluster.num_workers=3"]
    done = ray_command(*on_ray, "dispatch.mode=allreduce", f"hydra.run.dir={tmp_path / 'allreduce'}")
    assert done.returncode == 0 and digest("allreduce") == expected, done.stderr
    inject(sends(SIGKILL), "predict", first=2)
    done = ray_command(*on_ray, f"hydra.run.dir={tmp_path / 'killed'}")
    assert done.returncode == 0 and digest("killed") == expected, done.stderr
    assert "rank 0 died" in done.stdout
