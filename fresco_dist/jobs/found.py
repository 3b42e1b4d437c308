"""What of jobs is stored already, and what is left to do then: canvases to go on from, texts and pictures encoded."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fresco_dist.jobs.folder import RunFolder
from fresco_dist.runtime.history import unflatten
from fresco_dist.runtime.job import Job
from fresco_dist.runtime.store import Store
from fresco_dist.schedule.plan import Plan
from fresco_dist.schedule.resume import going_on

Unpack = Callable[[dict[str, np.ndarray], dict[str, Any]], Any]


@dataclass
class Found:
    """Of each job what is left to do, and what need not be done, by key; see Worker."""

    plans: list[Plan]
    by_key: dict[str, Any] = field(default_factory=dict)


def find(store: Store, jobs: Sequence[Job], *, read: bool = True) -> Found:
    """Look for what jobs consist of, with the numerics that the store is in use with; it is read at once.

    Without `read`, what is there is taken for whole.
    """
    found = Found([])
    missing: set[str] = set()  # so that jobs which have a canvas in common go on from the same

    def get(kind: str, key: str, unpack: Unpack) -> bool:
        if key not in found.by_key and key not in missing:
            name = f"{kind}-{key}"
            entry: Any = store.get(name) if read else (store.has(name) or None)
            if entry is None:
                missing.add(key)
            else:
                found.by_key[key] = unpack(*entry) if read else None
        return key in found.by_key

    keys = [job.keys for job in jobs]
    plans = going_on([job.plan for job in jobs], keys, lambda key: get("canvas", key, _unpack_canvas))
    for job, plan in zip(jobs, plans, strict=True):
        if job.keys.activity:
            get("activity", job.keys.activity, lambda arrays, facts: (arrays["map"], facts["masks"]))
        denoised = [i for i in plan.needed if plan.levels[i].todo]
        for key in [job.keys.texts[prompt] for prompt in plan.prompts] if denoised else ():
            get("text", key, lambda arrays, facts: arrays["text"])
        for i in denoised:
            get("inputs", job.keys.levels[i].inputs, _unpack_inputs)
        found.plans.append(plan)
    return found


def pack_inputs(parts: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays of an entry, from what is encoded of a picture: KIND.INDEX, and of embeddings, which are lists, .PLACE."""
    arrays: dict[str, np.ndarray] = {}
    for name, made in parts.items():
        arrays |= {f"{name}.{i}": array for i, array in enumerate(made if isinstance(made, list) else [made])}
    return arrays


def _unpack_canvas(arrays: dict[str, np.ndarray], facts: dict) -> tuple[np.ndarray, dict[str, Any]]:
    """Latents, and the history of their noise scheduler."""
    return arrays["x"], unflatten(arrays, facts)


def _unpack_inputs(arrays: dict[str, np.ndarray], facts: dict) -> tuple[list, list]:
    """Tiles, and what pictures are embedded to; in their order."""
    names = sorted(arrays, key=lambda name: tuple(int(part) for part in name.split(".")[1:]))
    tiles = [arrays[name] for name in names if name.startswith("encode.")]
    return tiles, [[arrays[name] for name in names if name.startswith("embed_picture.")]]


def restore(store: Store, folder: RunFolder, key: str) -> None:
    """Store the last canvas, of this key, that an earlier run has left in its folder: what is left is to decode it.

    Raises OSError if it cannot be written.
    """
    left = folder.read_latents(key)
    if left is None:
        return
    latents_CTHW, numerics, facts = left
    store.use(numerics)
    if store.put(f"canvas-{key}", {"x": latents_CTHW}, {}) and store.last_numerics() is None:
        store.record_numerics(facts)


class Choices:
    """What the planner has chosen for runs, so that they go on with the same, on whatever cluster.

    Each is a note in the store, named by all that decides what there is to choose from.
    """

    def __init__(self, store: Store | None, tell: Callable[[str], None]) -> None:
        self._store, self._tell = store, tell
        self._names: set[str] = set()

    def get(self, name: str) -> dict[str, Any]:
        """`overlap` and `batch` of tiles; empty if nothing was chosen that can be read."""
        self._names.add(name)
        note: dict[str, Any] = {} if self._store is None else self._store.read_note(f"choice-{name}")
        overlap, batch = note.get("overlap", -1), note.get("batch", -1)
        is_whole = type(overlap) in (int, float) and 0 <= overlap < 1 and type(batch) is int and 1 <= batch <= 64
        return {"overlap": overlap, "batch": batch} if is_whole else {}

    def put(self, name: str, overlap: float, batch: int) -> None:
        """Note a choice; where that fails, a run that goes on may choose otherwise."""
        if self._store is None:
            return
        try:
            self._store.write_note(f"choice-{name}", {"overlap": overlap, "batch": batch})
        except OSError as error:
            self._tell(f"what the planner chose is not stored: {error}")

    def remove(self) -> None:
        """Of runs that are done; the next may choose anew."""
        if self._store is None:
            return
        for name in self._names:
            with suppress(OSError):
                self._store.remove_note(f"choice-{name}")
