"""Prompts by region as a user types them: a list, or a file with masks beside it."""

import numpy as np
from conftest import forwards_of, run_json
from PIL import Image

REGIONS = "- {prompt: left, mask: masks/half.png}\n- {prompt: still, box: [0.7, 0, 1, 0.5]}\n"


def write_mask(path, columns: int) -> None:
    path.parent.mkdir(exist_ok=True)
    mask = np.zeros((96, 192), np.uint8)
    mask[:, :columns] = 255
    Image.fromarray(mask).save(path)


def test_command_regions_come_from_a_file_whose_masks_lie_beside_it(command, folder, tmp_path):
    mask = tmp_path / "masks" / "half.png"
    write_mask(mask, 96)
    (tmp_path / "regions.yaml").write_text(REGIONS)
    done = command(f"regions={tmp_path / 'regions.yaml'}")
    assert done.returncode == 0, done.stderr
    assert "regions   3 prompts by region, blended: 2 per window on average" in done.stdout
    run = run_json(folder)
    entries = [
        {"prompt": "left", "mask": str(mask), "box": None},
        {"prompt": "still", "mask": None, "box": [0.7, 0, 1, 0.5]},
    ]
    assert run["config"]["regions"] == entries
    assert forwards_of(folder) == 3 * 12 + 3 * 3
    listed = f"regions=[{{prompt: left, mask: {mask}}}, {{prompt: still, box: [0.7, 0, 1, 0.5]}}]"
    assert "already" in command(listed).stdout  # the same run


def test_command_text_of_a_file_is_taken_as_it_stands(command, folder, tmp_path):
    """Nothing in it is looked up, neither for the run nor for what run.json records."""
    text = "left ${oc.env:HOME} ${x}"
    (tmp_path / "regions.yaml").write_text(f"- {{prompt: '{text}', box: [0, 0, 0.5, 1]}}\n")
    assert command(f"regions={tmp_path / 'regions.yaml'}", "sampler.num_steps=1").returncode == 0
    assert run_json(folder)["config"]["regions"][0]["prompt"] == text


def test_command_mask_that_was_edited_in_place_is_another_run(command, folder, tmp_path):
    mask, store = tmp_path / "masks" / "half.png", f"store.path={tmp_path / 'store'}"
    write_mask(mask, 96)
    overrides = f"regions=[{{prompt: left, mask: {mask}}}]", store
    digests = []
    for columns in (96, 40):
        write_mask(mask, columns)
        done = command(*overrides)
        assert done.returncode == 0 and "already" not in done.stdout, done.stderr
        digests.append(run_json(folder)["latents_sha256"])
    assert digests[0] != digests[1]
    assert "already" in command(*overrides).stdout


def test_command_mask_counts_in_what_the_planner_chooses(command, tmp_path):
    mask = tmp_path / "masks" / "half.png"
    write_mask(mask, 96)
    done = command(f"regions=[{{prompt: left, mask: {mask}}}]", "tiles.batch=null", "plan_only=true")
    assert done.returncode == 0, done.stderr


LIST = "regions=[{prompt: left, box: [0, 0, 0.4, 1]}, {prompt: still, box: [0.7, 0, 1, 0.5]}]"


def test_command_regions_give_the_same_bits_on_ray_and_after_a_stop(command, ray_command, folder, tmp_path):
    guided = LIST, "sampler.guidance_scale=3", "tiles.batch=2"
    digests = []
    for name, run, overrides in [
        ("whole", command, ()),
        ("stopped", command, ("sampler.stop_after=1",)),
        ("stopped", command, ("dispatch.mode=allreduce",)),
        ("ray", ray_command, ("cluster.num_workers=2",)),
    ]:
        done = run(*guided, *overrides, f"hydra.run.dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
        digests.append(run_json(tmp_path / name).get("latents_sha256"))
    assert digests[0] == digests[2] == digests[3] is not None
