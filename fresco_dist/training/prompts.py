"""The motion language of the embedded model: kinds of things, what they may do, and the sentences that say so.

Owns the vocabulary and the prompt grammar. Never draws. A motion is (verb, direction); direction is a sign along
one axis, and a prompt may leave it out: then several motions fit the same first frame.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Motion:
    """What one kind does in one picture: `verb` and `sign` (-1 left or up, +1 right or down, 0 still).

    Of the light, -1 is that night comes and +1 that day does.
    """

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
LIGHT = "light"  # not a thing: of the whole picture, and only where it is asked for
LIGHT_VERB, LIGHT_WORDS = "changes", ("to night", "to day")
SINGULAR = ("river", "smoke")
STILL_SHARE, UNNAMED_SHARE, TOGETHER_SHARE, SWAY_SHARE = 0.08, 0.15, 0.85, 0.15
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
            + [LIGHT, LIGHT_VERB, *LIGHT_WORDS]
        )
        .replace(".", " ")
        .split()
    )
)


def sample_motions(rng: np.random.Generator) -> dict[str, Motion]:
    """One motion for every kind.

    In most pictures all that travels sideways goes the same way: then one word of the prompt decides everything,
    which is what makes directions learnable from few clips. Oscillations always begin the same way.
    """
    unnamed = rng.random() < UNNAMED_SHARE
    together = rng.random() < TOGETHER_SHARE
    heading = int(rng.choice((-1, 1)))
    motions = {}
    for kind in KINDS:
        options = VERBS[kind]
        verb, words = options[int(len(options) > 1 and rng.random() < SWAY_SHARE)]
        sign = int(rng.choice((-1, 1)))
        if words is None:
            sign = 1
        elif together and "to the left" in words:
            sign = heading
        if rng.random() < STILL_SHARE:
            motions[kind] = Motion("stands still" if kind in SINGULAR else "stand still", 0)
        else:
            motions[kind] = Motion(verb, sign, named=words is not None and not unnamed)
    return motions


def light_motion(sign: int, *, named: bool = True) -> Motion:
    """Night (-1) or day (+1) comes."""
    return Motion(LIGHT_VERB, sign, named)


def clause(kind: str, motion: Motion) -> str:
    """`the figures walk to the left.`"""
    words = LIGHT_WORDS if kind == LIGHT else dict(VERBS[kind]).get(motion.verb)
    direction = words[int(motion.sign > 0)] if motion.named and motion.sign and words else ""
    return " ".join(f"the {kind} {motion.verb} {direction}".split()) + "."


def prompt_of(motions: dict[str, Motion], *, opening: str = OPENINGS[0]) -> str:
    """The prompt of a picture: an opening and one clause per kind, in the order of `motions`."""
    return " ".join([opening, *(clause(kind, motion) for kind, motion in motions.items())]).strip()
