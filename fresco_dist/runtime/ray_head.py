"""The head of the Ray in use: whether it lives, and waits that end when it does not.

Calls that need the head and have no timeout block once it is gone, and after 60 s Ray ends the process, whatever it is
at (https://github.com/ray-project/ray/issues/36651). So they go through here, and the end is an orderly one.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from threading import Thread
from typing import TypeVar

import ray
from ray.exceptions import RpcError

from fresco_dist.schedule.execute import WorkerError

PULSE_S = 1.0  # how often the head is looked after, at least
KNOCK_TIMEOUT_S = 3.0
TELL_EVERY_S = 10.0  # what is waited for
ABSENCE_S = 30.0  # for a head that does not answer to come back; less than Ray's 60 s
VITAL = ("gcs_server", "raylet")  # of the processes of a Ray that was started here

Answer = TypeVar("Answer")
Tell = Callable[[str], object]  # takes a line for people


def say_nothing(line: str) -> None:
    """To whom nobody listens."""


def kill() -> None:
    """Kill the processes of the Ray that was started here: without a head it comes to no end of its own."""
    if (node := ray._private.worker._global_node) is not None:
        node.kill_all_processes(check_alive=False)


def pid_of(name: str) -> int:
    """Of a process of the Ray that was started here, such as "raylet"."""
    return ray._private.worker._global_node.all_processes[name][0].process.pid


class HeadLost(WorkerError):
    """Ray's head, or this node's part of it, is gone, and the workers with it."""


class Head:
    """Of the Ray that this process has started or joined, if there is one."""

    def __init__(self) -> None:
        self._asked_s = 0.0
        self._seen_s = time.monotonic()

    def loss(self) -> str | None:
        """What has happened to it; None while it lives, and for up to ABSENCE_S in which it does not answer."""
        node = ray._private.worker._global_node  # there is no public way
        if node is None:
            return None
        if ended := [f"{name} (status {gone.returncode})" for name, gone in node.dead_processes() if name in VITAL]:
            return f"Ray's {' and '.join(ended)} ended on this machine"
        if time.monotonic() - self._asked_s < PULSE_S:
            return None
        node_id = ray.NodeID.from_hex(ray.get_runtime_context().get_node_id())
        try:
            (node_lives,) = node.get_gcs_client().check_alive([node_id], timeout=KNOCK_TIMEOUT_S)
        except RpcError as error:
            away = time.monotonic() - self._seen_s > ABSENCE_S
            return f"Ray's head has not answered for {ABSENCE_S:g} s: {error}" if away else None
        self._asked_s = self._seen_s = time.monotonic()
        return None if node_lives else "Ray's head has given up the node that this command runs on"

    def require(self) -> None:
        """Raise HeadLost unless it lives."""
        if loss := self.loss():
            raise HeadLost(loss)

    def ask(self, call: Callable[[], Answer]) -> Answer:
        """What `call`, which needs the head and has no timeout, returns; raises HeadLost if it is lost meanwhile."""
        self.require()
        answer: Future[Answer] = Future()

        def run() -> None:
            try:
                answer.set_result(call())
            except BaseException as error:
                answer.set_exception(error)

        Thread(target=run, daemon=True).start()  # if the head is lost, it never ends
        while not wait_for([answer], timeout=PULSE_S).done:
            self.require()
        return answer.result()

    def pulses(self, timeout_s: float, tell: Tell, what: Callable[[], str]) -> Iterator[None]:
        """A turn of at most PULSE_S each, until `timeout_s` are over; `tell` hears what is waited for if it takes long.

        Raises HeadLost.
        """
        begun_s = told_s = time.monotonic()
        while (now_s := time.monotonic()) - begun_s < timeout_s:
            self.require()
            if now_s - told_s >= TELL_EVERY_S:
                told_s = now_s
                tell(f"waiting   {what()} ({now_s - begun_s:.0f} s)")
            yield
