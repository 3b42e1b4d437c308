"""What jobs/README.md promises for each fault: equal bits, or one line, the right exit code, and equal bits next time.

Faults that a signal or a lost Ray makes are in test_ray.py, those of the disk in jobs/test_full_disk.py, those of the
store in jobs/test_resume.py, those of whole nodes in launch/test_clusters.py.
"""

import os
import re
import subprocess
import sys
import time
from signal import SIGINT, SIGKILL, SIGSTOP

import pytest
from conftest import forwards_of, run_json
from faults import (  # noqa: F401 (fixtures)
    ALWAYS,
    LONG,
    LONG_FORWARDS,
    gives_nan,
    inject,
    is_late,
    long_digest,
    out_of_memory,
    raises,
    sends,
)
from processes import wait_until
from ray.exceptions import OutOfDiskError

from fresco_dist.jobs import keeper
from fresco_dist.launch import ONE_WISH_S
from fresco_dist.runtime import store

OOM = r"OutOfMemoryError: CUDA out of memory"
LATE = dict(fault=is_late(2.0), kind="commit", rank=1, first=3)  # so that the others wait in the all-reduce
SURVIVED = {  # mode; faults; further settings; what is told
    "killed in mid all-reduce": (
        "allreduce", [LATE, dict(fault=sends(SIGKILL, after_s=0.7), kind="commit", first=3)], [], "rank 0 died"
    ),
    "stopped": (
        "wavefront", [dict(fault=sends(SIGSTOP), kind="predict", first=3)], ["cluster.timeout_s=8"],
        r"rank 0 did not answer within cluster.timeout_s=8 s \(it was at predict"
    ),
    "NaN from a replica": (
        "wavefront", [dict(fault=gives_nan, kind="predict", first=3, times=ALWAYS)], [],
        "rank 0 failed at predict.*FloatingPointError"
    ),
    "NaN once": (
        "allreduce", [dict(fault=gives_nan, kind="predict", first=3)], [],
        "rank 0 failed at predict.*FloatingPointError"
    ),
    "out of memory in a forward": (
        "allreduce", [dict(fault=out_of_memory, kind="predict", first=3)], [], f"rank 0 failed at predict.*{OOM}"
    ),
    "out of memory in fusion": (
        "wavefront", [dict(fault=out_of_memory, kind="fuse", first=3)], [], f"rank 0 failed at fuse.*{OOM}"
    ),
    "text that fails": (
        "wavefront", [dict(fault=raises(RuntimeError("bad luck")), kind="encode_text")], [],
        "rank 0 failed at encode_text.*bad luck"
    ),
    "picture that fails": (
        "wavefront", [dict(fault=raises(RuntimeError("bad luck")), kind="encode", rank=1)], [],
        "rank 1 failed at encode,.*bad luck"
    ),
}  # fmt: skip


LIKE_ANOTHER = {"stopped", "NaN once"}  # that is quick, here or in test_ray.py
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in LIKE_ANOTHER)) for name in SURVIVED]


@pytest.mark.parametrize("name", NAMES)
def test_run_goes_on_with_equal_bits(ray_command, folder, inject, long_digest, name):  # noqa: F811
    mode, faults, settings, told = SURVIVED[name]
    for fault in faults:
        inject(**fault)
    done = ray_command(
        *LONG, "model.forward_s=0.02", "cluster.num_workers=2", f"dispatch.mode={mode}", *settings, tiny=False
    )
    assert done.returncode == 0, done.stderr
    run = run_json(folder)
    assert run["survived"] and all(re.match(told, line) for line in run["survived"]), run["survived"]
    assert run["latents_sha256"] == long_digest


ENDED = {  # fault; the kind of the task that it meets, and which of them; what is told
    "NaN": (gives_nan, "predict", 60, "error: rank 0 failed at predict, .*prediction in .*nan"),
    "out of memory": (out_of_memory, "predict", 60, "error: rank 0 failed at predict, .*CUDA out of memory"),
    "out of memory in the decoder": (out_of_memory, "decode", 1, "error: rank 0 failed at decode, .*out of memory"),
}


@pytest.mark.parametrize("mode", ["wavefront", "allreduce"])
@pytest.mark.parametrize("name", ENDED)
def test_run_without_another_worker_ends_in_one_line_and_goes_on(
    command, folder, inject, long_digest, monkeypatch, mode, name  # noqa: F811
):  # fmt: skip
    fault, kind, first, told = ENDED[name]
    monkeypatch.setattr(keeper, "SHARE", 1e9)
    monkeypatch.setattr(store, "flush", lambda path: None)
    run = [*LONG, "model.forward_s=0", "cluster.executor=inprocess", f"dispatch.mode={mode}"]
    inject(fault, kind, first=first)
    failed = command(*run, tiny=False)
    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert re.match(told, line), line
    assert run_json(folder)["status"] == "failed" and not (folder / "video.mp4").exists()
    done = command(*run, tiny=False)
    assert done.returncode == 0, done.stderr
    assert run_json(folder)["latents_sha256"] == long_digest
    assert forwards_of(folder) <= (LONG_FORWARDS - 50 if kind == "predict" else 0)


def test_object_store_that_stays_full_ends_the_run_and_it_goes_on(ray_command, folder, inject, long_digest):  # noqa: F811
    """When Ray can spill nothing more, either: each task is tried twice, not for ever."""
    run = [*LONG, "model.forward_s=0.02", "cluster.num_workers=2"]
    for rank in (0, 1):
        inject(raises(OutOfDiskError()), "predict", rank=rank, first=5, times=ALWAYS)
    failed = ray_command(*run, tiny=False)
    assert failed.returncode == 1
    line = failed.stderr.splitlines()[-1]
    assert re.match(r"error: rank \d failed at predict, .*: OutOfDiskError: .*object store is full", line), line
    done = ray_command(*run, tiny=False)
    assert done.returncode == 0, done.stderr
    assert run_json(folder)["latents_sha256"] == long_digest and forwards_of(folder) < LONG_FORWARDS


SLOW_TO_END = """
import sys, time
from fresco_dist import launch
from fresco_dist.jobs.job import JobRun
JobRun.fail = lambda *_: time.sleep(60)
sys.exit(launch.main())
"""


def test_second_interrupt_ends_a_run_that_is_slow_to_end(command, folder, picture_path, long_digest):  # noqa: F811
    run = [*LONG, "cluster.executor=inprocess"]
    places = [f"image={picture_path}", f"hydra.run.dir={folder}", "model.forward_s=0.3"]
    process = subprocess.Popen([sys.executable, "-c", SLOW_TO_END, *run, *places], stdout=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: any((folder / "store").glob("*/canvas-*")), "canvas in the store")
        process.send_signal(SIGINT)
        time.sleep(ONE_WISH_S + 0.5)
        assert process.poll() is None
        process.send_signal(SIGINT)
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
        process.wait()
    done = command(*run, "model.forward_s=0", tiny=False)
    assert done.returncode == 0, done.stderr
    assert run_json(folder)["latents_sha256"] == long_digest and forwards_of(folder) < LONG_FORWARDS


STARVED = """
import sys
from functools import partial
from fresco_dist import launch
launch._prepare_environment()
import numpy, ray
from fresco_dist.runtime.ray_executor import RayExecutor
ray.init = partial(ray.init, object_store_memory=80_000_000)
give = RayExecutor.give
def giving(executor, *given):
    give(executor, *given)
    executor.filler = [ray.put(numpy.ones(8_000_000, numpy.uint8)) for _ in range(15)]
    return executor
RayExecutor.give = giving
sys.exit(launch.main())
"""


@pytest.mark.slow
def test_object_store_that_is_full_spills(tmp_path, picture_path, long_digest):  # noqa: F811
    """120 MB of what nobody releases in a store of 80 MB, in which all results must find room."""
    places = [f"image={picture_path}", f"hydra.run.dir={tmp_path / 'out'}", "cluster.num_workers=2"]
    done = subprocess.run(
        [sys.executable, "-c", STARVED, *LONG, "model.forward_s=0", "cluster.cpus_per_worker=0.2", *places],
        env={**os.environ, "RAY_max_direct_call_object_size": "100"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert run_json(tmp_path / "out")["latents_sha256"] == long_digest
