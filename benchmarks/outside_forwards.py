"""Time outside the model's forwards as a share of a denoising step, on one worker.

The project's own worker runs a small graph whose backbone is a bare transformer: cut, predict, accumulate, move, fuse
and step are the real ones; text encoder and VAE are stand-ins. Tasks follow each other in one process, so what a
cluster runs beside the forwards is counted here too; its object store is not.
"""

import time
from unittest import mock

import numpy as np
import torch
from diffusers import WanTransformer3DModel

from fresco_dist import models
from fresco_dist.config import Config
from fresco_dist.models.conditioning import Conditioning
from fresco_dist.models.synthetic.model import SyntheticBackbone
from fresco_dist.runtime.inprocess_executor import InProcessExecutor
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.execute import execute
from fresco_dist.schedule.plan import Plan
from fresco_dist.schedule.tasks import run_graph
from fresco_dist.schedule.trace import TaskRecord, span_s


class TimedBackbone(SyntheticBackbone):
    """See Backbone: predictions of a transformer; `forward_s` adds up the seconds that its forwards take."""

    def __init__(self, transformer: WanTransformer3DModel, device: torch.device, text_tokens: int) -> None:
        super().__init__(forward_s=0.0)
        self.forward_s = 0.0
        self._transformer, self._device, self._text_tokens = transformer, device, text_tokens

    def encode_text(self, text: str) -> torch.Tensor:
        return torch.zeros(self._text_tokens, self._transformer.config.text_dim)

    def make_condition(self, raw_CTHW, image_embeds=(), *, has_last=False) -> Conditioning:
        config = self._transformer.config
        channels = config.in_channels - config.out_channels
        return Conditioning(torch.zeros(channels, *raw_CTHW.shape[1:], device=self._device))

    def predict(self, x_BCTHW, conditions, timestep, prompt_embeds) -> torch.Tensor:
        hidden = [torch.cat([x, condition.canvas_CTHW]) for x, condition in zip(x_BCTHW, conditions, strict=True)]
        hidden_BCTHW = torch.stack(hidden).to(torch.bfloat16)
        embeds = prompt_embeds.expand(len(hidden), -1, -1).to(torch.bfloat16)
        timesteps = timestep.float().to(self._device).expand(len(hidden))
        self._synchronize()
        started_s = time.perf_counter()
        m_BCTHW = self._transformer(hidden_BCTHW, timesteps, embeds, return_dict=False)[0]
        self._synchronize()
        self.forward_s += time.perf_counter() - started_s
        return m_BCTHW

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def share_outside(
    transformer: WanTransformer3DModel, config: Config, plan: Plan, device: torch.device, text_tokens: int
) -> float:
    """Share of the steps of `plan`, from the first prediction to the last fused cell, that no forward ran."""
    sizes_px = [plan.size_px(level) for level in range(len(plan.levels))]
    job = Job(config, plan, ("",), tuple(np.zeros((height, width, 3), np.uint8) for width, height in sizes_px))
    graph = run_graph([plan], [job.keys], config.dispatch.mode)
    backbone = TimedBackbone(transformer, device, text_tokens)
    records: list[TaskRecord] = []
    with mock.patch.object(models, "load", return_value=backbone):
        failed = execute(graph, InProcessExecutor(use_gpu=device.type == "cuda").give([job]), records.append, {})
    for error in failed.values():
        raise error
    return 1.0 - backbone.forward_s / span_s([record for record in records if record.task.kind in ("predict", "fuse")])
