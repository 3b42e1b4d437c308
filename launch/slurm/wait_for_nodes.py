"""wait_for_nodes.py HOST:PORT NUMBER: return once the head and that many nodes are alive, at most 5 minutes.

Ray itself does not wait for a head that has not started. NUMBER 0: the head's port only, without joining.
"""

import socket
import sys
import time

import ray

TIMEOUT_S = 300.0


def main(address: str, number: int) -> int:
    deadline = time.monotonic() + TIMEOUT_S
    host, port = address.rsplit(":", 1)
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
            break
        except OSError as error:
            if time.monotonic() > deadline:
                print(f"error: no Ray head at {address} within {TIMEOUT_S:g} s: {error}", file=sys.stderr)
                return 1
            time.sleep(1)
    if number == 0:
        return 0
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    while (alive := sum(node["Alive"] for node in ray.nodes())) < number:
        if time.monotonic() > deadline:
            print(f"error: {alive} of {number} Ray nodes at {address} within {TIMEOUT_S:g} s", file=sys.stderr)
            return 1
        time.sleep(1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
