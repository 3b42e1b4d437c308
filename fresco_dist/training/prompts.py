"""The motion language of the embedded model: kinds of things, what they may do, and the sentences that say so.

Owns the vocabulary and the prompt grammar. Never draws. A motion is (verb, direction); direction is a sign along
one axis, and a prompt may leave it out: then several motions fit the same first frame.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Motion:
    """What one kind does in one picture: `verb` and `sign` (-1 left or up, +1 right or down, 0 still)."""

    verb: str
    sign: int
    named: bool = True


# kind -> (verb, words for sign -1 and +1); a verb without words has no direction to name.
VERBS: dict[str, list[tuple[str, tuple[str, str] | None]]] = {
    "figures": [("walk", ("to the left", "to the right")), ("sway", None)],
    "angels": [("fly", ("up", "down"))],
    "boats": [("sail", ("to the left", "to the right"))],
    "river": [("flows", ("to the left", "to the right"))],
    "clouds": [("drift", ("to the left", "to the right"))],
    "trees": [("sway", None)],
    "banners": [("wave", None)],
    "smoke": [("rises", None)],
}
KINDS = tuple(VERBS)
SINGULAR = ("river", "smoke")
STILL_SHARE, UNNAMED_SHARE = 0.12, 0.2
OPENINGS = ("a fresco.", "an old fresco.", "a painted wall.", "")
EXTRA_WORDS = (
    "stand stands still stays calm moving people saints men women birds water wind sea lake flags leaves sky "
    "castle towers tower houses arches columns walls wall halos gold blue red green slowly gently quickly in with "
    "of on and are is old ancient painting painted animation video picture left right up down downwards upwards"
)
VOCABULARY = tuple(
    dict.fromkeys(
        " ".join(
            [*OPENINGS, *KINDS, *(verb for kind in VERBS.values() for verb, _ in kind), EXTRA_WORDS, "the to a an"]
        )
        .replace(".", " ")
        .split()
    )
)


def sample_motions(rng: np.random.Generator) -> dict[str, Motion]:
    """One motion for every kind; directions are uniform, and unnamed in a share of the pictures."""
    unnamed = rng.random() < UNNAMED_SHARE
    motions = {}
    for kind in KINDS:
        options = VERBS[kind]
        verb, words = options[rng.integers(len(options))]
        sign = int(rng.choice((-1, 1)))
        if rng.random() < STILL_SHARE:
            motions[kind] = Motion("stands still" if kind in SINGULAR else "stand still", 0)
        else:
            motions[kind] = Motion(verb, sign, named=words is not None and not unnamed)
    return motions


def clause(kind: str, motion: Motion) -> str:
    """`the figures walk to the left.`"""
    words = dict(VERBS[kind]).get(motion.verb)
    direction = words[int(motion.sign > 0)] if motion.named and motion.sign and words else ""
    return " ".join(f"the {kind} {motion.verb} {direction}".split()) + "."


def prompt_of(motions: dict[str, Motion], *, opening: str = OPENINGS[0]) -> str:
    """The prompt of a picture: an opening and one clause per kind, in the order of `motions`."""
    return " ".join([opening, *(clause(kind, motion) for kind, motion in motions.items())]).strip()
