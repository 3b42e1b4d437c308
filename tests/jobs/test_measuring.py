"""The process that measures: what it answers, how it ends, and that neither the videos nor the end wait for it."""

import io
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from threading import Event, Thread
from time import sleep
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import run_json
from processes import descendants, is_alive, wait_until

from fresco_dist.config import InputError
from fresco_dist.jobs import measuring, pool_run
from fresco_dist.jobs.job import JobRun
from fresco_dist.jobs.measuring import NICENESS, SIGNALS, Deadline, Measurer, choose_device
from fresco_dist.media.metrics import measure
from fresco_dist.method.grid import Window
from fresco_dist.schedule.execute import WorkerError

CLIP = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
SEAMS = [Window(0, 0, 24, 16), Window(0, 16, 24, 16)]


def make_job(
    dino_path: str | None = None, activity: np.ndarray | None = None, timeout_s: float = 60.0
) -> SimpleNamespace:
    """As much of a job as is asked for."""
    config = SimpleNamespace(dino_path=dino_path, cluster=SimpleNamespace(timeout_s=timeout_s))
    return SimpleNamespace(config=config, plan=SimpleNamespace(seams_px=SEAMS), activity=activity)


def wait_for_begin(pid: int) -> None:
    """Until a process leaves signals to the command and gives way, which is the last that it does before it measures.

    The tests' own may give way, too.
    """
    mask = sum(1 << (number - 1) for number in SIGNALS)

    def ignored() -> int:
        return int(re.search(r"SigIgn:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1], 16)

    wait_until(lambda: ignored() & mask == mask, "process that leaves signals to the command")
    wait_until(lambda: os.getpriority(os.PRIO_PROCESS, pid) == NICENESS, "process that gives way")


class SlowClip:
    """Has its second frame only once it is told to go on."""

    shape = CLIP.shape

    def __init__(self) -> None:
        self.go_on = Event()

    def __iter__(self):
        yield CLIP[0]
        self.go_on.wait(60)
        yield from CLIP[1:]


@pytest.fixture
def measurer():
    measurer = Measurer(None)
    yield measurer
    measurer.close()


class Measuring(Thread):
    """A slow clip that is being measured; `found` is what came of it."""

    def __init__(self, measurer: Measurer) -> None:
        super().__init__(daemon=True)
        self.measurer, self.clip, self.found = measurer, SlowClip(), None
        self.start()
        self.pid = wait_until(lambda: measurer._process and measurer._process.pid, "process")
        wait_for_begin(self.pid)

    def run(self) -> None:
        try:
            self.found = self.measurer.measure(self.clip, CLIP, make_job())
        except Exception as error:
            self.found = error

    def result(self):
        self.clip.go_on.set()
        self.join(60)
        return self.found


def test_other_process_answers_as_this_one_would(measurer, capfd):
    activity = np.eye(6, 8, dtype=bool)
    for clip, job in ((CLIP, make_job(activity=activity)), (CLIP[:2, ::2], make_job())):
        prior = clip[:, ::2, ::2]
        expected = measure(clip, prior, prior.shape[2:0:-1], SEAMS, job.activity)
        assert measurer.measure(clip, prior, job, job.activity) == expected
    assert capfd.readouterr() == ("", "")


def test_error_over_there_is_that_clips_alone(measurer, tmp_path):
    with pytest.raises(InputError, match=f"^dino_path must be a directory .* got {tmp_path}"):
        measurer.measure(CLIP, CLIP, make_job(dino_path=str(tmp_path)))
    with pytest.raises(WorkerError, match="^the metrics could not be measured: ") as caught:
        measurer.measure(CLIP, CLIP, make_job(), np.zeros((2, 2, 2, 2, 2), dtype=bool))
    assert "in measure" in caught.value.remote_traceback
    assert measurer.measure(CLIP, CLIP, make_job())["prior_distance"] == 0


def test_process_that_dies_is_told_of(measurer):
    measuring = Measuring(measurer)
    os.kill(measuring.pid, signal.SIGKILL)
    assert str(measuring.result()) == "the metrics could not be measured: the process ended with -9"


def test_process_that_hangs_is_given_up_and_the_next_clip_gets_another(measurer):
    measurer.measure(CLIP, CLIP, make_job())
    os.kill(measurer._process.pid, signal.SIGSTOP)
    with pytest.raises(WorkerError, match="a frame took longer than cluster.timeout_s=0.5"):
        measurer.measure(CLIP, CLIP, make_job(timeout_s=0.5))
    assert measurer.measure(CLIP, CLIP, make_job())["prior_distance"] == 0


def test_clip_that_cannot_be_read_spoils_no_other(measurer):
    class Torn(SlowClip):
        def __iter__(self):
            yield CLIP[0]
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        measurer.measure(Torn(), CLIP, make_job())
    assert measurer.measure(CLIP, CLIP, make_job())["prior_distance"] == 0


def test_process_leaves_signals_to_the_command(measurer):
    measuring = Measuring(measurer)
    for number in SIGNALS:
        os.kill(measuring.pid, number)
    assert measuring.result()["prior_distance"] == 0
    assert os.getpgid(measuring.pid) != os.getpgid(0)


def test_stop_ends_what_is_measured_and_all_that_comes_later(measurer):
    measuring = Measuring(measurer)
    measurer.stop()
    assert isinstance(measuring.result(), WorkerError) and not is_alive(measuring.pid)
    with pytest.raises(WorkerError, match="the run is to stop"):
        measurer.measure(CLIP, CLIP, make_job())


HANGING = """
from time import sleep
from types import SimpleNamespace
import numpy as np
from fresco_dist.jobs.measuring import Measurer
class Clip:
    shape = 2, 8, 8, 3
    def __iter__(self):
        yield np.zeros((8, 8, 3), np.uint8)
        sleep(600)
config = SimpleNamespace(dino_path=None, cluster=SimpleNamespace(timeout_s=60.0))
job = SimpleNamespace(config=config, plan=SimpleNamespace(seams_px=[]), activity=None)
Measurer(None).measure(Clip(), Clip(), job)
"""


def test_process_ends_with_a_command_that_is_killed():
    command = subprocess.Popen([sys.executable, "-c", HANGING])
    try:
        (pid,) = wait_until(lambda: descendants(command.pid), "process that measures")
        wait_for_begin(pid)
        assert is_alive(pid)
    finally:
        command.kill()
        command.wait()
    wait_until(lambda: not is_alive(pid), "end of it")


def test_encoder_is_loaded_once_and_takes_no_gpu_of_a_workers(monkeypatch):
    loaded = Counter()

    class Encoder:
        def __init__(self, path, device):
            loaded[str(path), device] += 1

        def __call__(self, frame):
            return frame.mean(axis=(0, 1))

    monkeypatch.setattr(measuring, "DinoEncoder", Encoder)
    monkeypatch.setattr(measuring.machine, "num_gpus", lambda: 8)
    for num_busy_gpus in (8, 8, 7, None):
        pipe = io.BytesIO()
        measuring._send(pipe, CLIP, CLIP, make_job(dino_path="/dino"), None, num_busy_gpus, Deadline(60))
        pipe.seek(0)
        request = measuring.json.loads(pipe.readline())
        assert measuring._answer(request, pipe)["prior_similarity"] == pytest.approx(1)
    # eight of eight are busy, twice; one is left; on a cluster that was joined it is not known
    assert loaded == {("/dino", "cpu"): 2, ("/dino", "cuda:7"): 1}
    assert [choose_device(num, busy) for num, busy in ((0, 0), (1, 0), (1, 1), (2, 1))] == [
        "cpu", "cuda:0", "cpu", "cuda:1",
    ]  # fmt: skip


def test_videos_do_not_wait_for_metrics_but_few_clips_do(command, tmp_path, monkeypatch):
    sweep, written, unmeasured, most = tmp_path / "sweep", [Event(), Event()], set(), []
    write, measure_there = JobRun.write, Measurer.measure

    def writing(run, *given):
        write(run, *given)
        unmeasured.add(run.job.config.seed)
        most.append(len(unmeasured))
        if len(most) <= 2:
            written[len(most) - 1].set()

    def measure_late(measurer, frames, prior_frames, job, *given):
        assert written[1].wait(60), "the next video waits for the metrics of this one"
        sleep(1)  # in which others are decoded
        found = measure_there(measurer, frames, prior_frames, job, *given)
        unmeasured.discard(job.config.seed)
        return found

    monkeypatch.setattr(pool_run, "MAX_UNWRITTEN", 2)
    monkeypatch.setattr(JobRun, "write", writing)
    monkeypatch.setattr(Measurer, "measure", measure_late)
    done = command("seed=0,1,2,3", "metrics=true", f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert done.returncode == 0, done.stderr
    assert max(most) == 2
    assert all(run_json(sweep / str(i))["metrics"]["sharpness"] > 0 for i in range(4))


def test_end_that_is_asked_for_does_not_wait_for_metrics(command, folder, monkeypatch):
    def hang(measurer, *given):
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_until(lambda: measurer._is_stopped, "stop")
        raise WorkerError("stopped")

    monkeypatch.setattr(pool_run, "PATIENCE_S", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(Measurer, "measure", hang)
        assert command("metrics=true").returncode == 75
    assert run_json(folder)["status"] == "interrupted"
    done = command("metrics=true")
    assert done.returncode == 0 and run_json(folder)["metrics"]["sharpness"] > 0
