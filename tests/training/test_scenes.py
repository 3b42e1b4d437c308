"""Procedural pictures: determinism, ground-truth activity, crops and prompts."""

import numpy as np
import pytest

from fresco_dist.training.data import HELD_OUT_SEEDS, sample_clip
from fresco_dist.training.prompts import (
    KINDS,
    LIGHT,
    VERBS,
    VOCABULARY,
    Motion,
    light_motion,
    prompt_of,
    sample_motions,
)
from fresco_dist.training.scenes import Scene, make_scene


def still_motions() -> dict[str, Motion]:
    return {kind: Motion("stand still", 0) for kind in KINDS}


def test_scene_same_seed_gives_same_bytes():
    first, second = (make_scene(3, width=200, height=120) for _ in range(2))
    assert first.prompt == second.prompt
    assert np.array_equal(first.frames(3), second.frames(3))


def test_scene_other_seed_gives_another_picture():
    first, second = (make_scene(seed, width=200, height=120).frames(1) for seed in (3, 4))
    assert np.abs(first.astype(int) - second).mean() > 5


@pytest.mark.parametrize("seed", range(6))
def test_activity_covers_exactly_where_frames_differ(seed):
    scene = make_scene(seed, width=256, height=160)
    frames = scene.frames(13).astype(int)
    changed = (np.abs(frames - frames[:1]).max(axis=(0, 3))) > 0
    assert changed.any()
    assert not (changed & ~scene.activity).any()
    assert scene.activity.mean() < 0.7
    # The mask may hold things whose inside looks the same after a move, but is not much larger than the change.
    assert changed.sum() > 0.5 * scene.activity.sum()


def test_scene_without_motion_is_static():
    scene = make_scene(5, width=200, height=120, motions=still_motions())
    frames = scene.frames(4)
    assert not scene.activity.any()
    assert (frames == frames[:1]).all()


@pytest.mark.parametrize("sign", [-1, 1])
def test_walking_figures_go_where_the_motion_says(sign):
    scene = make_scene(0, width=160, height=100, motions={**still_motions(), "figures": Motion("walk", sign)})
    seed = next(s for s in range(50) if "figures" in make_scene(s, width=160, height=100).kinds)
    scene = make_scene(seed, width=160, height=100, motions={**still_motions(), "figures": Motion("walk", sign)})
    frames = scene.frames(7).astype(float)
    changed = np.abs(frames[6] - frames[0]).max(-1) > 0
    columns = np.flatnonzero(changed.any(0))
    opposite = make_scene(seed, width=160, height=100, motions={**still_motions(), "figures": Motion("walk", -sign)})
    mirrored = np.abs(opposite.frames(7)[6] - frames[0]).max(-1) > 0
    others = np.flatnonzero(mirrored.any(0))
    assert sign * (columns.mean() - others.mean()) > 2


@pytest.mark.parametrize("sign, words", [(-1, " to night"), (1, " to day")])
def test_light_changes_the_whole_picture_and_one_panel_says_how(sign, words):
    motions = {**still_motions(), LIGHT: light_motion(sign, named=False)}
    scene, plain = (make_scene(5, width=200, height=120, motions=m) for m in (motions, still_motions()))
    assert scene.prompt.endswith(" the light changes.") and "light" not in plain.prompt
    (index,) = [i for i, panel in enumerate(scene.panels) if panel.theme == LIGHT]
    left, top, width, height = map(round, scene.panels[index].box)
    frames = scene.frames(9).astype(int)
    differs = (frames[0] != plain.frames(1)[0]).any(-1)
    differs[top : top + height, left : left + width] = False
    assert not differs.any()
    change = (frames[8] - frames[0]).sum(-1)
    assert (sign * change >= 0).mean() > 0.95 and (sign * change > 0).mean() > 0.9
    assert not scene.activity.any()
    named = make_scene(5, width=200, height=120, motions={LIGHT: light_motion(sign)})
    assert named.prompt.endswith(f"the light changes{words}.")


def test_crop_is_the_same_region_of_the_whole():
    scene = make_scene(7, width=240, height=160)
    whole = scene.frames(2)
    crop = scene.frames(2, box=(40, 30, 96, 64), size=(96, 64))
    assert crop.shape == (2, 64, 96, 3)
    # Pillow snaps edges to the raster, so single pixels on outlines may differ.
    assert np.abs(crop.astype(int) - whole[:, 30:94, 40:136]).mean() < 0.5


def test_thumbnail_resembles_the_reduced_picture():
    scene = make_scene(8, width=384, height=256)
    reduced = scene.frames(1)[0].reshape(64, 4, 96, 4, 3).mean((1, 3))
    assert np.abs(scene.frames(1, size=(96, 64))[0] - reduced).mean() < 6


def test_prompt_names_direction_only_when_named():
    assert prompt_of({"figures": Motion("walk", -1)}) == "a fresco. the figures walk to the left."
    assert prompt_of({"figures": Motion("walk", -1, named=False)}) == "a fresco. the figures walk."
    assert prompt_of({"river": Motion("stands still", 0)}) == "a fresco. the river stands still."


def test_most_pictures_send_everything_the_same_way():
    pictures = [sample_motions(np.random.default_rng(seed)) for seed in range(200)]
    sideways = [
        {motion.sign for kind in ("boats", "river", "clouds") if (motion := motions[kind]).sign} for motions in pictures
    ]
    assert 0.8 < np.mean([len(signs) == 1 for signs in sideways]) < 1.0
    assert {motions["trees"].sign for motions in pictures} == {0, 1}


def test_vocabulary_holds_every_word_of_every_prompt():
    for seed in range(40):
        words = prompt_of(sample_motions(np.random.default_rng(seed))).replace(".", " ").split()
        assert set(words) <= set(VOCABULARY)
    for sign in (-1, 1):
        assert set(prompt_of({LIGHT: light_motion(sign)}).replace(".", " ").split()) <= set(VOCABULARY)
    assert set(VERBS) == set(KINDS)


def test_clip_is_a_pure_function_of_its_seed():
    first, second = (sample_clip(11, height=64, width=96, num_frames=5) for _ in range(2))
    assert first.frames.shape == (5, 64, 96, 3) and first.moving.shape == (64, 96)
    assert first.prompt == second.prompt and np.array_equal(first.frames, second.frames)


def test_aimed_clips_hold_what_they_are_aimed_at():
    seeds = range(HELD_OUT_SEEDS, HELD_OUT_SEEDS + 24)
    aimed, free = ([sample_clip(s, height=64, width=96, num_frames=1, around=kind) for s in seeds]
                   for kind in ("angels", None))  # fmt: skip
    assert all("angels" in clip.prompt for clip in aimed if clip.prompt)
    assert sum("angels" in clip.prompt for clip in free) < 16
    lit = [sample_clip(s, height=64, width=96, num_frames=9, around=LIGHT) for s in seeds]
    assert all("the light changes" in clip.prompt for clip in lit if clip.prompt)
    change = np.array([clip.frames[8].mean() - clip.frames[0].mean() for clip in lit])
    assert (np.abs(change) > 8).all() and 6 < (change > 0).sum() < 18


def test_thumbnails_aimed_at_the_light_hold_the_sun_or_the_moon(monkeypatch):
    shown = []
    render = Scene.frames

    def frames(self, num_frames, *, box, size):
        (panel,) = (panel for panel in self.panels if panel.theme == LIGHT)
        middle = [panel.box[i] + panel.box[i + 2] / 2 for i in (0, 1)]
        shown.append((box[2] > size[0], all(box[i] < middle[i] < box[i] + box[i + 2] for i in (0, 1))))
        return render(self, num_frames, box=box, size=size)

    monkeypatch.setattr(Scene, "frames", frames)
    for seed in range(HELD_OUT_SEEDS, HELD_OUT_SEEDS + 24):
        sample_clip(seed, height=64, width=96, num_frames=1, around=LIGHT)
    assert all(holds for thumbnail, holds in shown if thumbnail)
    assert 0 < sum(holds for thumbnail, holds in shown if not thumbnail) < sum(not thumbnail for thumbnail, _ in shown)
