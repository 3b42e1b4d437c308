"""A worker makes parts of a canvas, never the whole: what a huge picture needs."""

from live_bytes import LiveBytes
from make_jobs import graph_of, make_job, make_picture

from fresco_dist.runtime.inprocess_executor import InProcessExecutor
from fresco_dist.runtime.worker import Worker
from fresco_dist.schedule.execute import execute


def test_no_task_of_a_wavefront_makes_as_much_as_half_a_canvas(monkeypatch):
    """Of 16 x 16 windows; `collect` alone puts the latents together, as an array of the host's."""
    settings = ("model.forward_s=0", "tiles.window=[128,128]", "prior.area=16384", "fusion=cascade")
    settings += ("tiles.overlap=0", "sampler.num_steps=2")
    job = make_job(None, "model=synthetic", *settings, image=make_picture(2048, 2048))
    peaks: dict[str, int] = {}
    run = Worker.run

    def counting(self, task, *rest):
        with LiveBytes() as seen:
            result = run(self, task, *rest)
        peaks[task.kind] = max(peaks.get(task.kind, 0), seen.peak)
        return result

    monkeypatch.setattr(Worker, "run", counting)
    dropped = execute(graph_of(job), InProcessExecutor(use_gpu=False).give([job]), lambda record: None, {})
    assert not dropped
    C, T, H, W = job.plan.canvas.latent_shape
    of_tiles = {"encode", "decode", "blend"}  # as large as the VAE's, and in pixels
    assert {"predict", "fuse", "begin"} <= peaks.keys() - of_tiles and H * W == 256 * 256
    assert max(peaks[kind] for kind in peaks.keys() - of_tiles) < C * T * H * W * 4 / 2, peaks
