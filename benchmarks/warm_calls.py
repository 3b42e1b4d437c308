"""Seconds of a first call of the Python interface, which starts Ray and loads the model, and of calls that do not.

The bundled demonstration, on the workers of this machine:  python benchmarks/warm_calls.py
"""

import time

import fresco_dist


def main() -> None:
    with fresco_dist.Animator(progress=False) as animate:
        for seed in (0, 1, 0):
            begun_s = time.monotonic()
            clip = animate(seed=seed)
            start_s, digest = clip.figures["timings_s"]["start"], clip.figures["latents_sha256"][:12]
            took_s = time.monotonic() - begun_s
            print(f"seed {seed}: {took_s:.1f} s, start {start_s:.1f} s, latents {digest}", flush=True)


if __name__ == "__main__":
    main()
