"""Real Ray actors, real gloo collectives: same bits, losses that a run survives, and no process left behind."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from importlib.resources import files
from pathlib import Path
from unittest import mock
from uuid import uuid4

import av
import numpy as np
import pytest
import ray
import torch
from conftest import TINY_RUN, forwards_of, make_picture, merged, run_here, run_json
from faults import LONG, LONG_FORWARDS, long_digest  # noqa: F401 (a fixture)
from make_jobs import denoise, graph_of, make_config, make_job
from PIL import Image
from processes import DEADLINE_S, actors, descendants, is_alive, wait_until

from fresco_dist.runtime import ray_cluster, ray_executor, ray_head
from fresco_dist.runtime.job import Job
from fresco_dist.runtime.ray_executor import BESIDE_GROUP, RayExecutor
from fresco_dist.runtime.ray_worker import WorkerActor
from fresco_dist.schedule.execute import WorkerError, execute
from fresco_dist.schedule.trace import TaskRecord


@pytest.fixture(scope="module")
def reference(tmp_path_factory, unipc_model_path) -> tuple[list[str], tuple[str, str]]:
    """What all runs share, and the digests of the in-process run.

    Two windows and two branches are fewer forwards per step than the most workers below; the VAE tiles are blended
    across workers; the noise scheduler is a multistep one.
    """
    folder = tmp_path_factory.mktemp("same_bits")
    make_picture(300, 264).save(folder / "picture.png")
    make_picture(75, 66, seed=1).save(folder / "activity.png")
    overrides = [f"image={folder / 'picture.png'}", f"model.path={unipc_model_path}"]
    overrides += ["tiles.window=[264,200]", "sampler.guidance_scale=3"]
    overrides += ["fusion=regional", f"fusion.activity_map={folder / 'activity.png'}"]
    arguments = [*merged(tuple(overrides), list(TINY_RUN)), "cluster.executor=inprocess", f"hydra.run.dir={folder}"]
    assert run_here(arguments) == 0
    return overrides, digests(folder, 1)


def digests(folder: Path, num_workers: int) -> tuple[str, str]:
    """Of the latents, and of the first, middle and last frame of a run that is done; all workers took part."""
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "done" and run["num_workers"] == num_workers and run["grid"]["num_windows"] == 2
    rows = {event["tid"] // 2 for event in json.loads((folder / "trace.json").read_text())["traceEvents"]}
    assert rows == set(range(num_workers))
    return run["latents_sha256"], hashlib.sha256((folder / "contact_sheet.png").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("mode", "num_workers"),
    [
        ("wavefront", 1),
        ("allreduce", 2),
        ("wavefront", 3),
        pytest.param("allreduce", 5, marks=pytest.mark.slow),
    ],
)
def test_result_is_the_same_bits_for_any_number_of_workers(ray_command, folder, reference, mode, num_workers):
    overrides, expected = reference
    done = ray_command(*overrides, f"dispatch.mode={mode}", f"cluster.num_workers={num_workers}")
    assert done.returncode == 0, done.stderr
    assert digests(folder, num_workers) == expected


@pytest.mark.slow
def test_bundled_demonstration_runs_as_in_the_readme(tmp_path):
    """No override at all: bundled picture, embedded model, Ray actors, a new folder below outputs/."""
    done = subprocess.run(
        [sys.executable, "-m", "fresco_dist.launch"], cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").glob("*/*")
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "done" and run["canvas"]["width"] == 512
    with av.open(str(folder / "video.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24").astype(float) for frame in video.decode(video=0)]
    given = np.asarray(Image.open(files("fresco_dist") / "assets" / "fresco.png").convert("RGB"))
    assert np.abs(frames[0] - given).mean() < 10  # an animation of this picture, not noise
    assert 0.1 < np.abs(frames[-1] - given).mean() < 25


@pytest.fixture
def send_to_a_worker(monkeypatch):
    """Has a worker that is at its tasks get a signal after the first prediction; afterwards it is gone in any case."""
    sent, wait = [], RayExecutor.wait

    def send(number: signal.Signals) -> None:
        def waiting(executor):
            event = wait(executor)
            if not sent and isinstance(event, TaskRecord) and event.task.kind == "predict":
                knock = executor._actors[0].__ray_call__.options(concurrency_group=BESIDE_GROUP)
                sent.append(ray.get(knock.remote(lambda _: os.getpid())))
                os.kill(sent[0], number)
            return event

        monkeypatch.setattr(RayExecutor, "wait", waiting)

    yield send
    for pid in filter(is_alive, sent):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("mode", "number", "places", "reason"),
    [
        ("wavefront", signal.SIGKILL, [], r"rank 0 died"),
        ("allreduce", signal.SIGKILL, [], r"rank 0 died"),
        ("allreduce", signal.SIGSTOP, ["cluster.timeout_s=8"], r"rank 0 did not answer within .*=8 s \(it was at "),
    ],
    ids=["wavefront-killed", "allreduce-killed", "allreduce-stopped"],
)
def test_run_goes_on_without_a_lost_worker(
    ray_command, folder, send_to_a_worker, long_digest, mode, number, places, reason  # noqa: F811
):  # fmt: skip
    send_to_a_worker(number)
    places = ["cluster.num_workers=3", f"dispatch.mode={mode}", *places]
    done = ray_command(*LONG, "model.forward_s=0.1", *places, tiny=False)
    assert done.returncode == 0, done.stderr
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "done"
    assert len(run["survived"]) == 1, run["survived"]
    (survived,) = run["survived"]
    assert re.match(reason, survived) and f"warning   {survived}" in done.stdout
    names = [event["name"] for event in json.loads((folder / "trace.json").read_text())["traceEvents"]]
    predictions = [name for name in names if name.startswith("predict, level 1")]
    num_windows = run["grid"]["num_windows"]
    assert len(set(predictions)) == 10 * num_windows
    lost = 0 if mode == "wavefront" else num_windows  # finished predictions that went with the worker: of one step
    assert len(predictions) - len(set(predictions)) <= lost
    assert run["latents_sha256"] == long_digest


def test_worker_that_died_between_two_runs_is_replaced(ray_command, warm_pool, folder):
    short = [*LONG, "model.forward_s=0", "sampler.num_steps=1", "cluster.num_workers=2"]
    assert ray_command(*short, "seed=1", tiny=False).returncode == 0
    actors = warm_pool._executor._actors
    assert ray_command(*short, "seed=2", tiny=False).returncode == 0 and warm_pool._executor._actors is actors
    pid, niceness = ray.get(actors[0].__ray_call__.remote(lambda _: (os.getpid(), os.nice(0))))
    assert niceness == os.nice(0), "on a busy machine it would hardly run"
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "end of the worker")
    done = ray_command(*short, tiny=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "run.json").read_text())["survived"] == []


class UnluckyExecutor(RayExecutor):
    """Loses one worker at the first commit, and another when the others form their next group."""

    def __init__(self, job: Job) -> None:
        self.pids: list[int] = []
        super().__init__(job.config.cluster, job.config.model.backbone, num_workers=4, gpus_per_worker=0)
        self.give([job])
        self.pids = ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in self._actors.values()])

    def submit(self, worker, task, node):
        if task.kind == "commit" and 1 in self._actors:
            self._kill(1)
        super().submit(worker, task, node)

    def _form_group(self) -> None:
        if self.pids and 2 in self._actors:
            self._kill(2)
        super()._form_group()

    def _kill(self, worker: int) -> None:
        if self.pids[worker]:
            os.kill(self.pids[worker], signal.SIGKILL)
            self.pids[worker] = 0


def test_run_survives_a_loss_during_the_recovery_from_another(warm_pool, monkeypatch):
    warm_pool.stop_workers()
    monkeypatch.setattr(ray_executor, "JOIN_TIMEOUT_S", 10.0)
    small = ["model=synthetic", "model.forward_s=0.05", "tiles.window=[32,32]", "fusion=multidiffusion"]
    job = make_job(None, *small, "dispatch.mode=allreduce", "cluster.cpus_per_worker=0.2")
    executor = UnluckyExecutor(job)
    found, losses = [], []
    try:
        receivers = {"collect": lambda task, latents: found.append(torch.tensor(latents))}
        dropped = execute(graph_of(job), executor, lambda record: None, receivers, losses.append)
    finally:
        executor.close()
    assert not dropped and torch.equal(found[-1], denoise(job))
    first, second = (f"{failure.worker}: {failure.error}" for failure in losses)
    assert first.startswith("1: rank 1 died")
    assert second == "2: rank 2 was lost while a new process group was formed"


def test_worker_that_cannot_make_its_canvas_lets_nobody_wait(warm_pool):
    """The first collective is queued behind what fails, everywhere: who skips it leaves the group."""
    warm_pool.stop_workers()
    small = ["model=synthetic", "model.forward_s=0", "tiles.window=[64,64]", "fusion=multidiffusion"]
    places = ["dispatch.mode=allreduce", "cluster.cpus_per_worker=0.2", "cluster.timeout_s=40"]
    job = make_job(None, *small, *places)
    executor = RayExecutor(job.config.cluster, job.config.model.backbone, num_workers=2, gpus_per_worker=0)
    losses = []

    def break_start(actor) -> None:
        def fail(task, **given):
            raise RuntimeError("out of memory")

        actor._worker._start = fail

    try:
        executor.give([job])
        ray.get(executor._actors[1].__ray_call__.remote(break_start))
        dropped = execute(graph_of(job), executor, lambda record: None, {}, losses.append)
        assert executor.answers()
    finally:
        executor.close()
    assert [str(failure.error) for failure in losses] == [
        "rank 1 failed at start, level 1, step 0: RuntimeError: out of memory"
    ]
    assert {task.kind for task in dropped} >= {"start", "commit", "collect", "decode"}


@pytest.fixture
def start_run(tmp_path, picture_path):
    """Starts LONG on two workers, a process that would take a minute; returns it when a canvas is stored."""
    running = []

    def start() -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "fresco_dist.launch", *LONG, f"image={picture_path}", "model.forward_s=1"]
            + [f"hydra.run.dir={tmp_path / 'out'}", "cluster.num_workers=2", "cluster.cpus_per_worker=0.2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            start_new_session=True,  # a group of its own, for signals to all of it
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # these tests may run under nohup
        )
        running.append(process)
        assert any("denoise" in line for line in process.stdout)  # reads until then
        wait_until(lambda: any((tmp_path / "out" / "store").glob("*/canvas-*")), "canvas in the store")
        assert len(actors(process.pid)) == 2
        return process

    yield start
    for process in running:
        processes = {process.pid} | descendants(process.pid)
        process.kill()
        process.wait()
        for pid in filter(is_alive, processes):
            os.kill(pid, signal.SIGKILL)


def kill_workers(run: subprocess.Popen) -> None:
    """Of a run that, meanwhile, refused who has not its token."""
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in descendants(run.pid)]
    address = next(found[1] for command in commands if (found := re.search(r"--gcs-address=([\d.:]+)", command)))
    done = subprocess.run(
        [sys.executable, "-c", "import ray, sys; ray.init(address=sys.argv[1]); print(ray.nodes())", address],
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode != 0 and "Auth" in done.stderr
    assert run.poll() is None
    for pid in actors(run.pid):
        os.kill(pid, signal.SIGKILL)


def send_to_part(name: str, number: signal.Signals, run: subprocess.Popen) -> None:
    """Of Ray: to the process whose program has this name."""
    programs = {Path(Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]).name: pid for pid in descendants(run.pid)}
    os.kill(programs[name], number)


def interrupt_twice(run: subprocess.Popen) -> None:
    """As `timeout` does, which counts as once."""
    run.send_signal(signal.SIGTERM)
    os.killpg(run.pid, signal.SIGTERM)


ENDS = [
    pytest.param(kill_workers, 1, r"rank \d died.*step ", id="killed workers"),
    pytest.param(
        partial(send_to_part, "gcs_server", signal.SIGKILL), 1, r"error: Ray's gcs_server .*ended", id="killed GCS"
    ),
    pytest.param(
        partial(send_to_part, "raylet", signal.SIGKILL),
        1,
        r"Ray's raylet .*ended",
        id="killed raylet",
        marks=pytest.mark.slow,
    ),
    pytest.param(interrupt_twice, 143, "terminated", id="SIGTERM-twice", marks=pytest.mark.slow),
]
for number, code, message in [
    (signal.SIGINT, 130, "interrupted"),
    (signal.SIGTERM, 143, "terminated"),
    (signal.SIGHUP, 129, "hung up"),
    (signal.SIGUSR1, 75, "stopped at a task boundary"),
]:
    for send in (os.kill, os.killpg):
        interrupt = partial(lambda send, number, run: send(run.pid, number), send, number)
        marks = [] if (send is os.killpg) == (number != signal.SIGTERM) else pytest.mark.slow  # one way each is enough
        ENDS.append(pytest.param(interrupt, code, message, id=f"{number.name}-{send.__name__}", marks=marks))


@pytest.fixture
def type_again(ray_command, folder, long_digest):  # noqa: F811
    """The same command, but on warm workers and with forwards that take no time: it goes on, and gives equal bits."""

    def run() -> None:
        assert not (folder / "video.mp4").exists()
        done = ray_command(*LONG, "model.forward_s=0", "cluster.num_workers=2", tiny=False)
        assert done.returncode == 0, done.stderr
        assert run_json(folder)["latents_sha256"] == long_digest and (folder / "video.mp4").exists()
        assert forwards_of(folder) < LONG_FORWARDS, done.stdout

    return run


@pytest.mark.parametrize(("interrupt", "code", "message"), ENDS)
def test_run_ends_at_once_leaves_nothing_and_goes_on(tmp_path, start_run, type_again, interrupt, code, message):
    process = start_run()
    processes = descendants(process.pid)
    assert process.pid not in map(os.getpgid, processes)  # or a signal to the group would end Ray before the run
    interrupt(process)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert re.search(message, stderr.strip().split("\n")[-1])
    wait_until(lambda: not any(map(is_alive, processes)), "end of all processes")
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["status"] == ("failed" if code == 1 else "interrupted") and run["error"]
    type_again()


def test_killed_driver_leaves_nothing_and_goes_on(start_run, type_again):
    process = start_run()
    processes = descendants(process.pid)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    wait_until(lambda: not any(map(is_alive, processes)), "end of all processes", deadline_s=30)  # Ray's own need 60
    type_again()


def test_workers_that_do_not_start_are_named_with_the_key_to_raise(warm_pool, monkeypatch):
    """One sleeps in its constructor: after a while a line says who is missing, at the end of the time an error."""
    warm_pool.stop_workers()
    start, told = WorkerActor.__init__, []

    def slow_start(self, *arguments, use_gpu):
        with suppress(FileExistsError):
            os.mkdir(f"/tmp/{marker}")
            time.sleep(600)
        start(self, *arguments, use_gpu=use_gpu)

    marker = f"fresco_dist_{uuid4().hex}"
    monkeypatch.setattr(WorkerActor, "__init__", slow_start)
    monkeypatch.setattr(ray_head, "TELL_EVERY_S", 2.0)
    job = make_job(None, "model=synthetic", "cluster.cpus_per_worker=0.2", "cluster.start_timeout_s=15")
    executor = RayExecutor(
        job.config.cluster, job.config.model.backbone, num_workers=2, gpus_per_worker=0, tell=told.append
    )
    try:
        with pytest.raises(WorkerError, match=r"^worker [01] did not start within cluster.start_timeout_s=15 s. Raise"):
            executor.give([job])
    finally:
        executor.close()
        Path(f"/tmp/{marker}").rmdir()
    assert re.fullmatch(r"waiting   for worker [01] to start \(\d+ s\)", told[-1]), told


def test_cluster_address_where_nothing_listens_is_bad_input(launch, picture_path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where no token lies
    done = launch(f"image={picture_path}", "cluster.address=127.0.0.1:9")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: cluster.address: cannot join Ray at 127.0.0.1:9")


def test_disk_full_where_ray_starts_is_not_blamed_on_the_address(monkeypatch):
    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_cluster.ray, "init", mock.Mock(side_effect=OSError("no space left on device")))
    monkeypatch.setattr(ray_cluster, "_ours", None)
    with pytest.raises(OSError, match="no space left"):
        ray_cluster.start_ray(make_config().cluster)
