"""Prompts to embeddings, against the stock pipeline's own."""

import pytest
import torch
from make_jobs import make_job, stock_pipeline

from fresco_dist import models

PROMPTS = [
    "the figures walk left",
    "",
    "  the\n\tfigures\u00a0 \u3000walk ",
    "the <left> &amp;lt;walk&amp;gt; &amp;nbsp; &quot;still",  # ftfy resolves no entity beside a tag
    "\u201cthe\u201d \u00e2\u20ac\u0153walk\u00e2\u20ac\x9d \ufb01gures wa\u0301lk \U0001f3a8",
    "the left " * 400,
]


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[1:2], PROMPTS[-1:]], ids=["all", "empty", "too long"])
def test_prompts_are_encoded_as_the_stock_pipeline_does(model_path, prompts):
    backbone = models.load(make_job(model_path).config.model, torch.device("cpu"))
    with torch.inference_mode():
        ours = backbone.encode_prompts(prompts)
        theirs, _ = stock_pipeline(model_path).encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=512
        )
    assert torch.equal(ours, theirs)
