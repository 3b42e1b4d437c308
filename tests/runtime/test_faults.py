"""What the README promises for each fault: equal bits, or a clear line, the right exit code, and equal bits next time.

Faults that a signal or a lost Ray makes are in test_ray.py, those of the disk in jobs/test_full_disk.py, those of the
store in jobs/test_resume.py, those of whole nodes in launch/test_clusters.py.
"""

import re
from signal import SIGKILL, SIGSTOP

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

from fresco_dist.jobs import keeper
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
    "out of memory in the decoder": (
        "wavefront", [dict(fault=out_of_memory, kind="decode")], [], f"rank 0 failed at decode.*{OOM}"
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


@pytest.mark.parametrize("name", SURVIVED)
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


ENDED = {  # fault; at the how manieth task of which kind; what is told
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
    monkeypatch.setattr(store, "_flush", lambda path: None)
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
