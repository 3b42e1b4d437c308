"""What is composed from overrides, and how its errors are told."""

import pytest
from hydra.core.global_hydra import GlobalHydra

from fresco_dist.settings.schema import compose_config
from fresco_dist.settings.wording import in_words


def test_schema_takes_the_keys_of_the_chosen_recipe_alone():
    assert compose_config("fusion=regional", "fusion.cutoff_active=0.1").fusion.cutoff_active == 0.1
    assert not hasattr(compose_config("fusion=fresco", "fusion.cutoff_active=0.1").fusion, "cutoff_active")


def test_schema_leaves_hydra_as_it_was():
    GlobalHydra.instance().clear()
    compose_config()
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    "override, words",
    [
        ("sampler.num_stepz=3", "sampler.num_stepz: there is no such key. Did you mean sampler.num_steps?"),
        ("model=wan3", "model must be one of fresco_tiny, stable_diffusion, synthetic, wan"),
        ("tiles.window=5", "tiles.window must be a list, tiles.window=[A,B]; got 5."),
        ("fusion.method=mine", "fusion.method must be one of"),
    ],
)
def test_wording_names_key_value_and_what_is_allowed(override, words):
    with pytest.raises(Exception) as refused:
        compose_config(override)
    assert in_words(refused.value).startswith(words)
