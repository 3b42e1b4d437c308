"""The metrics of clips, in a process of its own: one that takes what time others leave, and no GPU of theirs.

It gets the frames through a pipe, one by one, wherever they are kept, and ends when that does: with the command,
however that ends. A request is a line of JSON, the activity map if there is one, and a frame and a prior frame in turn;
an answer is a line of JSON.
"""

import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from functools import cache
from pathlib import Path
from subprocess import PIPE, Popen
from threading import Event, Lock, Thread
from typing import IO, Any

import numpy as np

from fresco_dist.config import InputError, expanded
from fresco_dist.media.metrics import measure
from fresco_dist.media.pictures import to_depth
from fresco_dist.method.grid import Window
from fresco_dist.models.dino import DinoEncoder
from fresco_dist.runtime import machine
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.execute import WorkerError

NICENESS = 19  # the last to get a CPU
PIPE_BYTES = 2**20  # a frame has 24 million at UHD
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # they are for the command


class Deadline:
    """A process is killed if it takes too long over a frame."""

    def __init__(self, timeout_s: float) -> None:
        self.passed = False
        self._timeout_s = timeout_s
        self._until_s = math.inf

    @contextmanager
    def of(self, process: Popen) -> Iterator[None]:
        """While the body waits for a process; `renew` says that it goes on."""
        ended = Event()

        def watch() -> None:
            while not ended.wait(min(1.0, self._timeout_s)):
                if time.monotonic() > self._until_s:
                    self.passed = True
                    process.kill()
                    return

        self.renew()
        watcher = Thread(target=watch, name="metrics deadline", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()

    def renew(self) -> None:
        """Another frame begins."""
        self._until_s = time.monotonic() + self._timeout_s


class Measurer:
    """The other process, from the first clip on; for one thread at a time, but for `stop`."""

    def __init__(self, num_busy_gpus: int | None) -> None:
        """`num_busy_gpus` of this machine are the workers'; None: others may have the rest."""
        self._num_busy_gpus = num_busy_gpus
        self._lock, self._is_stopped = Lock(), False
        self._process: Popen | None = None

    def measure(
        self, frames: np.ndarray, prior_frames: np.ndarray, job: Job, activity_HW: np.ndarray | None = None
    ) -> dict[str, float]:
        """See `metrics.measure`; both clips are (F, H, W, 3), of 8 or 16 bits, and measured in 8.

        Raises InputError for an encoder that cannot be loaded, WorkerError for what else goes wrong over there.
        """
        process, deadline = self._start(), Deadline(job.config.cluster.timeout_s)
        assert process.stdin is not None and process.stdout is not None
        answer: dict[str, Any] = {}
        try:
            with suppress(BrokenPipeError), deadline.of(process):  # the answer, or that there is none, says why
                _send(process.stdin, frames, prior_frames, job, activity_HW, self._num_busy_gpus, deadline)
            with deadline.of(process):
                answer = json.loads(process.stdout.readline() or "{}")
        finally:
            if "metrics" not in answer:  # it may be in the midst of a clip: the next one gets another process
                process.kill()
                exit_code = self.close()
        if "metrics" in answer:
            return answer["metrics"]
        if "refused" in answer:
            raise InputError(answer["refused"])
        late = f"a frame took longer than cluster.timeout_s={job.config.cluster.timeout_s:g}"
        reason = answer.get("failed", late if deadline.passed else f"the process ended with {exit_code}")
        raise WorkerError(f"the metrics could not be measured: {reason}", answer.get("traceback", ""))

    def stop(self) -> None:
        """End it at once: what it is at fails, and so does what comes later."""
        with self._lock:
            self._is_stopped = True
            if self._process is not None:
                self._process.kill()

    def close(self) -> int | None:
        """Let it end; its exit code, if there was one."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return None
        with suppress(BrokenPipeError):  # what was not read of a clip
            process.communicate()
        process.wait()
        return process.returncode

    def _start(self) -> Popen:
        """Unless it is there. No process group of the command's is its own: terminals interrupt whole ones."""
        with self._lock:
            if self._is_stopped:
                raise WorkerError("the metrics were not measured: the run is to stop")
            if self._process is None:
                command = [sys.executable, "-m", __name__]
                self._process = Popen(command, stdin=PIPE, stdout=PIPE, pipesize=PIPE_BYTES, process_group=0)
            return self._process


def _send(
    pipe: IO[bytes],
    frames: np.ndarray,
    prior_frames: np.ndarray,
    job: Job,
    activity_HW: np.ndarray | None,
    num_busy_gpus: int | None,
    deadline: Deadline,
) -> None:
    dino_path = job.config.dino_path
    request = {
        "shapes": [frames.shape, prior_frames.shape],
        "seams": [astuple(window) for window in job.plan.seams_px],
        "activity_shape": None if activity_HW is None else activity_HW.shape,
        "dino_path": dino_path and str(expanded(dino_path).absolute()),
        "num_busy_gpus": num_busy_gpus,
    }
    pipe.write(json.dumps(request).encode() + b"\n")
    if activity_HW is not None:
        pipe.write(np.ascontiguousarray(activity_HW, dtype=bool).data)
    for pair in zip(frames, prior_frames, strict=True):
        deadline.renew()
        for frame in pair:
            pipe.write(np.ascontiguousarray(to_depth(frame, 8)).data)
    pipe.flush()


def choose_device(num_gpus: int, num_busy: int) -> str:
    """A GPU if workers leave one of those of a machine, else the CPU. Ray hands them out from the first on."""
    return f"cuda:{num_gpus - 1}" if num_gpus > num_busy else "cpu"


@cache
def _encoder(path: str, num_busy_gpus: int | None) -> DinoEncoder:
    device = "cpu" if num_busy_gpus is None else choose_device(machine.num_gpus(), num_busy_gpus)
    return DinoEncoder(Path(path), device)


def _read(pipe: IO[bytes], shape: Sequence[int], dtype: type = np.uint8) -> np.ndarray:
    """One array; raises EOFError if it does not come."""
    size = int(np.prod(shape))
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return np.frombuffer(data, dtype).reshape(shape)


def _answer(request: dict, pipe: IO[bytes]) -> dict[str, float]:
    """What a request asks for, of the arrays that follow it."""
    (num_frames, *frame_shape), (_, *prior_shape) = request["shapes"]
    activity_shape, path = request["activity_shape"], request["dino_path"]
    return measure(
        activity_HW=_read(pipe, activity_shape, bool) if activity_shape else None,
        frames=(_read(pipe, frame_shape) for _ in range(num_frames)),
        prior_frames=(_read(pipe, prior_shape) for _ in range(num_frames)),
        size=tuple(prior_shape[1::-1]),
        seams_px=[Window(*bounds) for bounds in request["seams"]],
        encode=_encoder(path, request["num_busy_gpus"]) if path else None,
    )


def main() -> None:
    """Answer until the pipe ends, or a request cannot be answered."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    answer: dict[str, Any]
    while line := sys.stdin.buffer.readline():
        try:
            answer = {"metrics": _answer(json.loads(line), sys.stdin.buffer)}
        except EOFError:
            return
        except InputError as error:
            answer = {"refused": str(error)}
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        with suppress(BrokenPipeError):
            print(json.dumps(answer), file=answers, flush=True)
        if "metrics" not in answer:
            return


if __name__ == "__main__":
    main()
