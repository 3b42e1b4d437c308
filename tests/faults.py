"""A run that is long enough for faults; and faults: some task fails, kills or stops its worker, or is late.

In this process or in an actor. A fault is called in the place of a task, with the worker and what would run the task.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import ray
import torch
from conftest import make_picture, run_here, run_json

from fresco_dist.runtime.inprocess_executor import InProcessExecutor
from fresco_dist.runtime.ray_executor import RayExecutor
from fresco_dist.runtime.worker import Worker

Fault = Callable[[Worker, Callable[[], Any]], Any]
ALWAYS = 10**9
LONG_FORWARDS = 110  # 10 of the prior, 10 x 10 windows
LONG = (
    "model=synthetic", "tiles.window=[32,32]", "prior.area=1024", "video.num_frames=5", "sampler.num_steps=10",
    "fusion.cutoff=0.2",
)  # fmt: skip
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors do not find the tests' folder


def raises(error: BaseException) -> Fault:
    """The task fails."""

    def fail(worker: Worker, run: Callable[[], Any]) -> Any:
        raise error

    return fail


def out_of_memory(worker: Worker, run: Callable[[], Any]) -> Any:
    """What torch says then."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def gives_nan(worker: Worker, run: Callable[[], Any]) -> Any:
    """The model predicts what is no number."""
    with mock.patch.object(worker._backbone, "predict", lambda x, *_: torch.full_like(x, float("nan"))):
        return run()


def sends(number: signal.Signals, *, after_s: float = 0.0) -> Fault:
    """The worker's process gets a signal, at the start of the task or while it runs."""

    def send(worker: Worker, run: Callable[[], Any]) -> Any:
        kill = partial(os.kill, os.getpid(), number)
        if after_s:
            threading.Timer(after_s, kill).start()
        else:
            kill()
        return run()

    return send


def is_late(seconds: float) -> Fault:
    """The task starts later."""

    def wait(worker: Worker, run: Callable[[], Any]) -> Any:
        time.sleep(seconds)
        return run()

    return wait


def _strike(worker: Worker, kind: str, fault: Fault, first: int, times: int) -> None:
    name, seen = f"_{kind}", []
    method = getattr(worker, name)

    def struck(*arguments: Any, **given: Any) -> Any:
        seen.append(arguments[0])
        run = partial(method, *arguments, **given)
        return fault(worker, run) if first <= len(seen) < first + times else run()

    setattr(worker, name, struck)


@pytest.fixture
def inject(monkeypatch) -> Callable[..., None]:
    """Have the next run meet a fault at the `first` task of a kind on worker `rank`, and at `times` in all."""

    def inject(fault: Fault, kind: str, *, rank: int = 0, first: int = 1, times: int = 1) -> None:
        give, give_here = RayExecutor.give, InProcessExecutor.give
        strike = partial(_strike, kind=kind, fault=fault, first=first, times=times)
        struck: list[object] = []

        def giving(executor: RayExecutor, *given: Any) -> RayExecutor:
            give(executor, *given)
            if not struck:
                call = executor._actors[rank].__ray_call__
                struck.append(ray.get(call.remote(lambda actor: strike(actor._worker))))
            return executor

        def giving_here(executor: InProcessExecutor, *given: Any) -> InProcessExecutor:
            give_here(executor, *given)
            if not struck:
                struck.append(strike(executor._worker))
            return executor

        monkeypatch.setattr(RayExecutor, "give", giving)
        monkeypatch.setattr(InProcessExecutor, "give", giving_here)

    return inject


@pytest.fixture(scope="module")
def long_digest(tmp_path_factory) -> str:
    """Of the latents of LONG, by one process."""
    folder = tmp_path_factory.mktemp("long")
    make_picture(96, 48).save(folder / "picture.png")
    places = [f"image={folder / 'picture.png'}", f"hydra.run.dir={folder}"]
    assert run_here([*LONG, *places, "model.forward_s=0", "cluster.executor=inprocess"]) == 0
    return run_json(folder)["latents_sha256"]
