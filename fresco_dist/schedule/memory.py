"""The memory that a worker will need, from the model's configuration alone, and what to change where it does not fit.

Weights and canvas are counted. Activations are estimated: the constants below were fitted to the live tensors of one
forward of narrow models, within 10%; kernels with workspaces of their own (cuDNN copies its inputs) and the
allocator's fragments come on top. Nothing here loads or allocates.
"""

from dataclasses import dataclass, replace

from fresco_dist.config import (
    Config,
    DispatchMode,
    Dtype,
    ExpertOffload,
    InputError,
    ModelConfig,
    Offload,
    Quantization,
)
from fresco_dist.schedule.plan import Plan, replan
from fresco_dist.schedule.spec import ITEM_BYTES, PROMPT_TOKENS

CONTEXT_GB = 1.0  # CUDA context and libraries, an allowance


@dataclass(frozen=True)
class WorkerMemory:
    """Bytes on one GPU. Text encoder, forward and decode follow each other and never meet.

    All texts of a run are encoded, and the encoder has gone, before the worker that did it begins a canvas; unless
    another one was lost while it encoded, whose texts are then encoded late.
    """

    weights: float  # transformers on the device, VAE
    second_expert: float  # if it comes after the text encoder has gone
    canvas: float
    forward: float
    decode: float
    text_encoder: float

    @property
    def peak_gb(self) -> float:
        """The largest sum at any time, in GB."""
        while_denoising = self.second_expert + self.canvas + max(self.forward, self.decode)
        return (self.weights + max(self.text_encoder, while_denoising)) / 1e9


def forward_bytes(plan: Plan, item_bytes: int) -> float:
    """Activations of one forward of the largest tile: attention or feed-forward of a block, whichever holds more.

    In units of tokens x width, of the window and of the prompt, which passes the same layers: tensors in the model's
    precision, and float32 ones in the rotary embedding and the modulation, which timesteps per token spread over all.
    """
    shape = plan.spec.transformer
    if shape is None:
        return 0.0
    num_tokens = max(B * (T * H * W / plan.spec.patch**2 + PROMPT_TOKENS) for B, T, H, W in plan.tile_shapes)
    attention = 8.2 * item_bytes + 5.5
    feed_forward = (4.2 + 2.0 * shape.ffn_width / shape.width) * item_bytes
    modulation = 7.0 * item_bytes + 24.0 if shape.per_token_timesteps else 0.0
    return num_tokens * shape.width * (max(attention, feed_forward) + modulation)


def decode_bytes(plan: Plan, item_bytes: int) -> float:
    """Activations of decoding one VAE tile: feature maps of the last stage with their caches, and the frames."""
    vae = plan.spec.vae
    if vae is None:
        return 0.0
    pixels = (plan.spec.decode_tile_px[0] / vae.patch) ** 2
    features = (84.0 if vae.residual else 51.0) * vae.width
    frames = plan.canvas.latent_shape[1] * plan.spec.temporal_factor * 3 * vae.patch**2
    return (features + frames) * pixels * item_bytes


def weight_bytes(plan: Plan, model: ModelConfig) -> float:
    """Weights on the device from the start: of experts, in the precision they have, and of the VAE."""
    shape = plan.spec.transformer
    if shape is None:
        return plan.spec.weight_bytes
    full = shape.num_parameters * ITEM_BYTES[model.dtype]
    rest = plan.spec.weight_bytes - shape.num_experts * full
    if model.offload is Offload.group:  # one block computes while the next arrives
        blocks = shape.block_parameters * ITEM_BYTES[model.dtype]
        return rest + full - blocks + 2.0 * blocks / shape.num_blocks
    if model.quantization is Quantization.fp8:
        full -= shape.block_parameters
    resident = shape.num_experts if model.expert_offload is ExpertOffload.hold else 1
    return rest + resident * full


def canvas_bytes(plan: Plan, mode: DispatchMode, num_open: int = 1) -> float:
    """What a worker holds of canvases: windows of a forward and a cell beside it, and whole ones to reduce.

    Of a part, latents, accumulators, fused output, prior, up to four of the noise scheduler; condition. Of a whole one,
    latents before and after a step, each also as cells, accumulator, its reduced copy, as many of the noise scheduler.
    """
    C, T, H, W = plan.canvas.latent_shape
    windows = max(B * T * height * width for B, T, height, width in plan.tile_shapes)
    cell = max(T * cell.height * cell.width for i in plan.needed for cell in plan.levels[i].cells)
    parts = (windows + cell) * (8 * C + plan.spec.condition_channels)
    is_replicated = mode is DispatchMode.allreduce and plan.canvas.until is None and not plan.canvas.decides
    return 4.0 * (parts + num_open * is_replicated * 10 * C * T * H * W)


def worker_memory(plan: Plan, config: Config, num_open: int = 1) -> WorkerMemory:
    """What one worker needs with so many canvases at once, see `tasks.open_canvases`."""
    model = config.model
    shape, ahead = plan.spec.transformer, model.expert_offload is ExpertOffload.ahead
    return WorkerMemory(
        weights=weight_bytes(plan, model),
        second_expert=shape.num_parameters * ITEM_BYTES[model.dtype] if shape and ahead else 0.0,
        canvas=canvas_bytes(plan, config.dispatch.mode, num_open),
        forward=forward_bytes(plan, ITEM_BYTES[model.dtype]),
        decode=decode_bytes(plan, ITEM_BYTES[model.vae_dtype]),
        text_encoder=plan.spec.text_encoder_bytes,
    )


def needed_gb(plan: Plan, config: Config, num_open: int = 1) -> float:
    """The GPU memory that one worker needs, CUDA included."""
    return worker_memory(plan, config, num_open).peak_gb + CONTEXT_GB


def check_fit(plan: Plan, config: Config, gpu_memory_gb: float, num_open: int = 1) -> None:
    """Raise InputError, with the settings that would help, if a worker needs more than a GPU has."""
    needed = needed_gb(plan, config, num_open)
    if needed <= gpu_memory_gb:
        return
    remedies = [name for name, peak_gb in alternatives(plan, config, num_open) if peak_gb + CONTEXT_GB <= gpu_memory_gb]
    remedy = f"{remedies[0]} would fit." if remedies else "No setting of this model would fit: use a larger GPU."
    raise InputError(
        f"cluster.gpu_memory_gb must be at least {needed:.1f}, the expected peak of a worker with CUDA;"
        f" got {gpu_memory_gb:.1f}. {remedy}"
    )


def alternatives(plan: Plan, config: Config, num_open: int = 1) -> list[tuple[str, float]]:
    """Settings that need less memory, the least costly first, each with a worker's peak in GB."""
    model, shape = config.model, plan.spec.transformer
    one_by_one = []
    if plan.batch > 1:
        single = replan(config, plan, batch=1, overlap=plan.overlap)
        one_by_one = [("tiles.batch=1", worker_memory(single, config, num_open).peak_gb)]
    if shape is None or model.offload is not None:
        return one_by_one
    changes: list[tuple[str, ModelConfig]] = []
    if model.dtype is Dtype.float32:
        changes.append(("model.dtype=bfloat16", replace(model, dtype=Dtype.bfloat16)))
    elif model.quantization is None and model.expert_offload is ExpertOffload.hold:
        changes.append(("model.quantization=fp8", replace(model, quantization=Quantization.fp8)))
    if shape.num_experts > 1 and model.quantization is None:
        policies = list(ExpertOffload)  # each needs less than the one before
        for policy in policies[policies.index(model.expert_offload) + 1 :]:
            changes.append((f"model.expert_offload={policy.value}", replace(model, expert_offload=policy)))
    grouped = replace(model, offload=Offload.group, quantization=None, compile=False, expert_offload=ExpertOffload.hold)
    changes.append(("model.offload=group", grouped))
    configs = [(name, replace(config, model=changed)) for name, changed in changes]
    return one_by_one + [(name, worker_memory(plan, changed, num_open).peak_gb) for name, changed in configs]
