"""One dimension of VBench-I2V for one method of an export: `python dimension.py OUT METHOD DIMENSION`; see run.sh.

Runs in VBench's own environment, in the folder that has DreamSim's `models`. Leaves VBench's two files in
OUT/results/METHOD, whole or not at all. Exit code 2: nothing can be computed on this machine.
"""

import json
import sys
from pathlib import Path


def main(out: Path, method: str, dimension: str) -> None:
    check_machine(out / "videos" / method)

    from PIL import Image
    from vbench2_beta_i2v import VBenchI2V

    class VBenchOfExport(VBenchI2V):
        """With a list of videos that is there already: vbench 0.1.5 would only look for those of its own suite."""

        def build_full_info_json(self, *_: object, **__: object) -> str:
            return str(partial / f"{dimension}_full_info.json")

    results = out / "results" / method
    partial = results / f".partial-{dimension}"
    partial.mkdir(parents=True, exist_ok=True)
    (partial / f"{dimension}_full_info.json").write_text(json.dumps(full_info(out, method, dimension), indent=4))
    Image.MAX_IMAGE_PIXELS = None  # murals are larger than Pillow's limit
    # "cuda", not a torch.device: only then motion_smoothness reduces large frames to what the GPU's memory holds
    vbench = VBenchOfExport("cuda", None, str(partial))
    vbench.evaluate(str(out / "videos" / method), name=dimension, dimension_list=[dimension], local=True)
    for kind in ("full_info", "eval_results"):  # the latter, which says that all is done, last
        (partial / f"{dimension}_{kind}.json").replace(results / f"{dimension}_{kind}.json")
    partial.rmdir()


def full_info(out: Path, method: str, dimension: str) -> list[dict]:
    """The videos in VBench's format, each with its digest, which says later what the results are of.

    VBench looks for images in a folder of its own, which an absolute path overrides.
    """
    videos = json.loads((out / "videos.json").read_text())
    return [
        {
            "prompt_en": Path(name).name.removesuffix("-0.mp4"),
            "dimension": [dimension],
            "image_name": str(out / "images" / entry["image"]),
            "video_list": [str(out / "videos" / name)],
            "sha256": entry["sha256"],
        }
        for name, entry in videos.items()
        if name.startswith(f"{method}/")
    ]


def check_machine(videos: Path) -> None:
    import decord
    import torch

    if not torch.cuda.is_available():
        refuse("VBench-I2V needs a CUDA GPU; none was found.")
    largest = max(videos.iterdir(), key=lambda path: path.stat().st_size)
    reader = decord.VideoReader(str(largest), num_threads=1)
    num_bytes = 6 * len(reader) * reader[0].asnumpy().size  # twice as uint8, once as float32, at the same time
    meminfo = Path("/proc/meminfo").read_text()
    available = 1024 * int(meminfo.split("MemAvailable:")[1].split()[0])
    if num_bytes > available:
        refuse(f"{largest} takes {num_bytes / 1e9:.1f} GB of memory in VBench; {available / 1e9:.1f} GB are available.")


def refuse(why: str) -> None:
    print(f"error: {why}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
