"""Canvases between steps with the history of real noise schedulers: stored and cut anew, they give the same bits."""

import json
import pickle
from collections.abc import Sequence
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from make_jobs import STEPS, make_job
from test_levels import random_cells

from fresco_dist import models
from fresco_dist.method.grid import Window
from fresco_dist.models.backbone import HISTORY
from fresco_dist.models.conditioning import Conditioning
from fresco_dist.runtime.cells import receive, send
from fresco_dist.runtime.history import cut_cell, flatten, join_cells, unflatten
from fresco_dist.runtime.step import Cell, Denoiser, Guidance
from fresco_dist.runtime.store import Store

CPU = torch.device("cpu")
SCHEDULERS = {"euler": "model_path", "unipc": "unipc_model_path"}
CANVAS = (12, 16)
WHOLE = Window(0, 0, *CANVAS)
ARRAYS = st.sampled_from([np.float32, np.int64, np.float64, np.bool_]).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=4, max_side=3))
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("ab.", max_size=4) | ARRAYS
HISTORIES = st.dictionaries(st.sampled_from(["a", "a_1", "_b", "array"]), PLAIN | st.lists(PLAIN | st.lists(PLAIN)))


@pytest.fixture(params=SCHEDULERS)
def path(request):
    return request.getfixturevalue(SCHEDULERS[request.param])


def make_denoiser(path, cells: Sequence[Window]) -> Denoiser:
    """Of the canvas of a job, cut into cells, as every worker makes one."""
    job = make_job(path, "fusion=multidiffusion")
    level = replace(job.plan.canvas, cells=tuple(cells))
    return Denoiser(
        models.load(job.config.model, CPU),
        level,
        seed=0,
        condition=lambda part, index: Conditioning(torch.zeros(8, level.latent_shape[1], part.height, part.width)),
        device=torch.device("cpu"),
        prompt_embeds={},
    )


def go_on(denoiser: Denoiser, cells: list[Cell], steps: Sequence[int], pulled_before: int | None = None) -> list[Cell]:
    """The cells some steps later, with predictions that are random, and the same for every partition."""
    z_CTHW, cells = torch.full(denoiser.level.latent_shape, 0.5), list(cells)
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        shape = denoiser.level.latent_shape
        total_CTHW = torch.randint(-(2**24), 2**24, shape, dtype=torch.int32, generator=generator)
        pulls = step + 1 == pulled_before
        pull = Guidance(lambda window: z_CTHW[(..., *window.slices)], 0.3, 0.3) if pulls else None
        for i, window in enumerate(denoiser.level.cells):
            m_CTHW = denoiser.fuse(cells[i], step, i, total_CTHW[(..., *window.slices)].contiguous())
            cells[i] = denoiser.step(cells[i], m_CTHW, step, i, pull)
    return cells


def joined(denoiser: Denoiser, cells: list[Cell]) -> tuple[np.ndarray, dict]:
    """The canvas with its history, as a worker sends its cells."""
    packed = [send(denoiser.pack(cell)) for cell in cells]
    return join_cells(denoiser.level.canvas, dict(zip(denoiser.level.cells, packed, strict=True)))


@pytest.mark.parametrize("is_pulled", [False, True], ids=["free", "pulled"])
@pytest.mark.parametrize("num_before", range(STEPS))
def test_stored_canvas_goes_on_in_other_cells_as_if_nothing_had_been(path, tmp_path, num_before, is_pulled):
    first, second = (make_denoiser(path, random_cells(CANVAS, seed)) for seed in (1, 2))
    whole = make_denoiser(path, [WHOLE])
    assert whole.level.canvas == CANVAS
    pulled_before = num_before if is_pulled else None
    expected = go_on(whole, [whole.first_cell(whole.level.cells[0])], range(STEPS), pulled_before)

    cells = [first.first_cell(cell) for cell in first.level.cells]
    x, history = joined(first, go_on(first, cells, range(num_before), pulled_before))
    arrays, facts = flatten(history)
    store = Store(tmp_path)
    store.use("here")
    store.put("canvas", arrays | {"x": x}, facts)
    arrays, facts = store.get("canvas")

    packed = [cut_cell(window, arrays["x"], unflatten(arrays, facts)) for window in second.level.cells]
    cells = [second.unpack(torch.tensor(x), receive(history, CPU)) for x, history in packed]
    after = go_on(second, cells, range(num_before, STEPS))
    assert torch.equal(torch.tensor(joined(second, after)[0]), expected[0].x_CTHW)


def test_history_of_the_multistep_scheduler_is_what_it_goes_on_from(unipc_model_path):
    """Or the test above could pass without any."""
    denoiser = make_denoiser(unipc_model_path, [WHOLE])
    cells = go_on(denoiser, [denoiser.first_cell(denoiser.level.cells[0])], range(2))
    x_CTHW, history = denoiser.pack(cells[0])
    assert (
        {"model_outputs", "timestep_list", "last_sample", "this_order"} <= history.keys() <= set(HISTORY[kind(cells)])
    )
    (kept,), (lost,) = (go_on(denoiser, [denoiser.unpack(x_CTHW, h)], [2]) for h in (history, {"_begin_index": 2}))
    assert not torch.equal(kept.x_CTHW, lost.x_CTHW)


def kind(cells: list[Cell]) -> str:
    return type(cells[0].scheduler).__name__


@pytest.mark.parametrize("name", ["sigmas", "timesteps", "config", "step", "__class__", "disable_corrector"])
def test_unpacking_sets_nothing_but_history(path, name):
    denoiser = make_denoiser(path, [WHOLE])
    with pytest.raises(ValueError, match=f"history must be _begin_index, _step_index.*; got {name}"):
        denoiser.unpack(torch.zeros(1), {"_step_index": 1, name: None})


@pytest.mark.parametrize("name", HISTORY)
def test_history_is_what_a_step_changes(name):
    """Of the diffusers that is installed: an attribute that is not in the table would be shared by all cells."""
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"} if name.startswith("UniPC") else {}
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(STEPS)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    new = {name: pickle.dumps(value) for name, value in vars(scheduler).items()}
    x = torch.randn(1, 4, 2, 3)
    for timestep in scheduler.timesteps:
        x = scheduler.step(torch.randn(x.shape), timestep, x, return_dict=False)[0]
    changed = {name for name, value in vars(scheduler).items() if pickle.dumps(value) != new.get(name)}
    assert changed == set(HISTORY[name]) - {"_begin_index"}


def is_same(some, other) -> bool:
    """Also in type, dtype and shape."""
    if isinstance(some, dict):
        return list(some) == list(other) and all(is_same(some[name], other[name]) for name in some)
    if isinstance(some, list):
        return type(other) is list and len(some) == len(other) and all(map(is_same, some, other))
    if isinstance(some, np.ndarray):
        kinds = (some.dtype, some.shape) == (other.dtype, other.shape)
        return kinds and some.tobytes() == other.tobytes()
    return type(some) is type(other) and some == other


@given(HISTORIES)
def test_flattened_history_is_restored_exactly(history):
    found, facts = flatten(history)
    assert all(isinstance(array, np.ndarray) for array in found.values())
    assert is_same(unflatten(found | {"x": np.zeros(3)}, json.loads(json.dumps(facts))), history)


@pytest.mark.parametrize("value", [np.float64(1.0), (1, 2), {"a": 1}, [torch.zeros(2)]], ids=repr)
def test_what_could_not_be_restored_is_refused(value):
    with pytest.raises(TypeError, match="history.name.* cannot be stored"):
        flatten({"name": value})


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_joining_and_cutting_are_inverse_for_any_partition(seed, other):
    random = np.random.default_rng(seed)
    x = random.normal(size=(4, 3, *CANVAS)).astype(np.float32)
    history = {
        "outputs": [None, x[None] + 1],
        "times": [None, np.array(7)],
        "last": x[:1, 0] - 1,
        "index": 3,
        "a": None,
    }
    for cells in (random_cells(CANVAS, seed), random_cells(CANVAS, other)):
        pieces = {window: cut_cell(window, x, history) for window in cells}
        for window, (piece, _) in pieces.items():
            assert np.array_equal(piece, x[:, :, *window.slices])
        x, history = join_cells(CANVAS, pieces)
    again = np.random.default_rng(seed).normal(size=x.shape).astype(np.float32)
    assert is_same([x, history["outputs"][1]], [again, again[None] + 1])
    assert is_same(history["times"], [None, np.array(7)]) and history["outputs"][0] is None
    assert is_same([history["last"], history["index"], history["a"]], [again[:1, 0] - 1, 3, None])


HALVES = [Window(0, 0, 2, 2), Window(0, 2, 2, 2)]
PIECE = np.zeros((1, 2, 2), dtype=np.float32)


@pytest.mark.parametrize(
    "one, two",
    [
        ({"index": 1}, {"index": 2}),
        ({"index": 1}, {"index": True}),
        ({"index": 1}, {}),
        ({"index": np.array(1)}, {"index": np.array(2)}),
        ({"index": np.array(1)}, {"index": np.array(1, dtype=np.uint64)}),
        ({"outputs": [PIECE]}, {"outputs": [None]}),
        ({"outputs": PIECE}, {"outputs": PIECE.astype(np.float64)}),
        ({"outputs": PIECE}, {"outputs": PIECE[:, :1]}),
    ],
)
def test_cells_that_are_not_of_one_canvas_are_not_joined(one, two):
    with pytest.raises(AssertionError):
        join_cells((2, 4), {HALVES[0]: (PIECE, one), HALVES[1]: (PIECE, two)})


@pytest.mark.parametrize("canvas", [(2, 2), (2, 5)], ids=["beyond", "uncovered"])
def test_cells_that_are_no_partition_are_not_joined(canvas):
    with pytest.raises(AssertionError, match="partition"):
        join_cells(canvas, {window: (PIECE, {}) for window in HALVES})
