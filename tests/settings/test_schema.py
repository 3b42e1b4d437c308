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
        ("prompt=choice(a,b)", "prompt=choice(a,b): this makes a sweep, with -m. One text goes in quotes: 'prompt="),
        ("tiles.window=5,6", "tiles.window=5,6: this makes a sweep, with -m. A list is tiles.window=[A,B]."),
        ("seed=1,2", "seed=1,2: this makes a sweep, with -m."),
        ("seed=range(1,3)", "seed=range(1,3): this makes a sweep, with -m."),
    ],
)
def test_wording_names_key_value_and_what_is_allowed(override, words):
    with pytest.raises(Exception) as refused:
        compose_config(override)
    assert in_words(refused.value).startswith(words)


@pytest.mark.parametrize("override", ["~seed image", "seed=1,2", "seed=range(1,3)"])
def test_wording_says_nothing_of_quotes_where_they_would_not_help(override):
    with pytest.raises(Exception) as refused:
        compose_config(override)
    assert "quotes" not in in_words(refused.value)
