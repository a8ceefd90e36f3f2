"""Time and memory of style alignment, in ratios: plain, textbook, ours, ours with a cached reference.

    python -m experiments.benchmarks.style_alignment --tiny   # a minute on one CPU core: a tiny SDXL, small layers
    python -m experiments.benchmarks.style_alignment          # SDXL's layers and SD 1.5's U-Net; on a GPU also SDXL's
    python -m experiments.benchmarks.style_alignment --scenes # the offline model

Whole U-Nets have random weights; SD 1.5's draws at 512 px.

Every round runs all variants one after the other; a ratio is the median over rounds of the ratios within a round, so
that a busy machine slows both sides alike. On a CPU the process's own time on one thread is counted.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from context_diffusion.alignment.aligner import style_aligned
from context_diffusion.alignment.trajectory import Trajectory
from context_diffusion.checkpoints import find_device
from context_diffusion.checks import check_count
from context_diffusion.commands import Parser, run_command
from context_diffusion.files import check_output, written_whole
from context_diffusion.from_scratch.style_aligned import TextbookSettings, textbook
from context_diffusion.pipelines import load_pipeline

SHIFT = math.log(2)
TINY_SDXL = {
    "sample_size": 32,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "cross_attention_dim": 64,
    "attention_head_dim": (2, 4),
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
}
SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1280 + 6 * 256,
}


class OneLayer(nn.Module):
    """A U-Net that is one self-attention layer: its latents are the layer's features."""

    def __init__(self, side: int, channels: int, heads: int):
        super().__init__()
        self.attn1 = Attention(query_dim=channels, heads=heads, dim_head=channels // heads)
        self.conv_in = nn.Conv2d(1, 1, 1)
        self.config = SimpleNamespace(
            in_channels=channels, sample_size=side, block_out_channels=(channels,), cross_attention_dim=8
        )

    @property
    def attn_processors(self) -> dict:
        return {"attn1.processor": self.attn1.processor}

    def set_attn_processor(self, processors: dict) -> None:
        self.attn1.set_processor(processors["attn1.processor"])

    def forward(self, sample: Tensor, timestep, encoder_hidden_states, **_) -> tuple[Tensor]:
        return (self.attn1(sample.flatten(2).transpose(1, 2)),)


class Subject:
    """A U-Net with random inputs of ``images`` targets under guidance, and ``references`` trajectories of one step."""

    def __init__(self, unet: nn.Module, images: int, references: int, device: str, dtype: torch.dtype):
        torch.manual_seed(0)
        self.unet, self.images = unet, images
        config, real = unet.config, isinstance(unet, UNet2DConditionModel)
        self.shape = (config.in_channels, config.sample_size, config.sample_size)
        scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
        scheduler.set_timesteps(50)
        self.pipe = SimpleNamespace(unet=unet, scheduler=scheduler)
        self.time = scheduler.timesteps[20]
        real = real and config.addition_embed_type == "text_time"  # of SDXL: pooled text and sizes
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim if real else 8

        def embeddings(rows: int) -> dict[str, Tensor]:
            texts = {branch: torch.randn(rows, 77, config.cross_attention_dim) for branch in ("uncond", "cond")}
            extra = {"pooled_" + branch: torch.randn(rows, pooled) for branch in texts}
            return {**texts, **extra, "time_ids": torch.ones(rows, 6)} if real else texts

        products = scheduler.alphas_cumprod[[int(self.time), int(self.time) - 20]].double()
        latents = torch.randn(2, references, *self.shape)
        names = ("",) * references
        self.trajectory = Trajectory(latents, self.time[None].float(), products, embeddings(references), names)
        self.rows = [torch.randn(1, *self.shape) for _ in range(images + 1)]
        self.to = {"device": device, "dtype": dtype}
        self.real, self.pooled = real, pooled

    def call(self, rows: int) -> Callable[[], None]:
        """One U-Net call on ``rows`` images under guidance."""
        sample = torch.cat([*self.rows[:rows]] * 2).to(**self.to)
        text = torch.randn(2 * rows, 77, self.unet.config.cross_attention_dim).to(**self.to)
        added = {"text_embeds": torch.randn(2 * rows, self.pooled), "time_ids": torch.ones(2 * rows, 6)}
        extra = {"added_cond_kwargs": {n: x.to(**self.to) for n, x in added.items()}} if self.real else {}
        return lambda: self.unet(sample, self.time, encoder_hidden_states=text, return_dict=False, **extra)

    def variants(self) -> dict[str, tuple[Callable, Callable]]:
        """Name -> (block to run in, call)."""
        targets, with_row = self.call(self.images), self.call(self.images + 1)
        outside = {"references": self.trajectory, "score_shift": SHIFT}

        def written(shift: float):
            return lambda: textbook(self.unet, TextbookSettings(score_shift=shift))

        def ours(**settings):
            return lambda: style_aligned(self.pipe, branches=("uncond", "cond"), **settings)

        return {
            "plain": (nullcontext, targets),
            "textbook": (written(0.0), targets),
            "ours": (ours(), targets),
            "textbook, shift": (written(SHIFT), targets),
            "ours, shift": (ours(score_shift=SHIFT), targets),
            "textbook, reference row, shift": (written(SHIFT), with_row),
            "ours, reference, shift": (ours(**outside), targets),
            "ours, cached reference": (ours(cache=True, references=self.trajectory), targets),
            "ours, cached reference, shift": (ours(cache=True, **outside), targets),
        }


def seconds(call: Callable[[], None], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def peak_bytes(call: Callable[[], None], device: str) -> int:
    """The most memory that the call holds at once beyond what was held before it."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@torch.no_grad()
def measure(subject: Subject, rounds: int, device: str, only: tuple[str, ...] = ()) -> dict[str, dict[str, float]]:
    """Time and peak memory of each variant, and the ratio of its time to the plain call's."""
    variants = {name: both for name, both in subject.variants().items() if not only or name in only}
    times: dict[str, list[float]] = {name: [] for name in variants}
    memory = {}
    for round_ in range(rounds + 1):  # the first warms up and is watched for memory
        for name, (block, call) in variants.items():
            with block():
                if "cached" in name:
                    call()
                if round_ == 0:
                    memory[name] = peak_bytes(call, device)
                else:
                    times[name].append(seconds(call, device))
    first = next(iter(variants))
    return {
        name: {
            "milliseconds": 1000 * statistics.median(each),
            "to_plain": statistics.median(a / b for a, b in zip(each, times[first], strict=True)),
            "peak_mib": memory[name] / 2**20,
        }
        for name, each in times.items()
    }


def show(title: str, table: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}\n{'':32s}{'ms':>10s}{'x plain':>10s}{'peak MiB':>10s}")
    for name, row in table.items():
        print(f"{name:32s}{row['milliseconds']:10.1f}{row['to_plain']:10.2f}{row['peak_mib']:10.1f}")
    for ours, theirs in (
        ("ours", "textbook"),
        ("ours, shift", "textbook, shift"),
        ("ours, reference, shift", "textbook, reference row, shift"),
        ("ours, cached reference, shift", "textbook, reference row, shift"),
    ):
        if ours in table and theirs in table:
            time_, memory = (table[ours][key] / table[theirs][key] for key in ("to_plain", "peak_mib"))
            print(f"  {ours} / {theirs}: {time_:.2f} of the time, {memory:.2f} of the memory")


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small shapes only")
    parser.add_argument("--scenes", action="store_true", help="the offline model's U-Net alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="write all numbers to this JSON file")
    options = parser.parse_args()
    check_count("--rounds", options.rounds, 1000)
    if options.output:
        check_output(options.output, what="--output")
    device, results = str(find_device(options.device)), {}
    dtype = torch.float32 if device == "cpu" else torch.float16
    if device == "cpu":
        torch.set_num_threads(1)

    count = 2 if device == "cpu" and not options.tiny else 3  # images in a layer

    def run(title: str, unet: nn.Module, images: int, references: int = 1, only: tuple[str, ...] = ()) -> None:
        subject = Subject(unet.to(device, dtype).eval(), images, references, device, dtype)
        results[title] = measure(subject, options.rounds, device, only)
        show(title, results[title])

    def unet(config: dict) -> UNet2DConditionModel:
        return UNet2DConditionModel(**config, use_linear_projection=True, addition_embed_type="text_time")

    against_plain = ("plain", "ours, cached reference", "ours, cached reference, shift")
    if options.scenes:
        network = load_pipeline("tiny-scenes", device=device).unet
        for images in (1, 4):
            run(f"tiny-scenes, {images} images", network, images)
        return

    for images in (1, 4):
        run(f"tiny SDXL, {images} images", unet(TINY_SDXL), images)
    shapes = [(8, 64, 4), (16, 64, 4), (32, 64, 4)] if options.tiny else [(32, 1280, 20), (64, 640, 10)]
    for side, channels, heads in shapes:
        run(f"one layer, {side * side} tokens x {channels}, {count} images", OneLayer(side, channels, heads), count)
        run(f"one layer, {side * side} tokens x {channels}, 1", OneLayer(side, channels, heads), 1, only=against_plain)
    for references in (1, 2, 3):
        few = ("plain", "ours, reference, shift", "ours, cached reference, shift")
        run(f"{references} references, 256 tokens x 64", OneLayer(16, 64, 4), 3, references, few)
    if not options.tiny:
        against_textbook = ("plain", "textbook", "ours", "textbook, shift", "ours, shift")
        run("SD 1.5 at 512 px, 2 images", UNet2DConditionModel(**SD15), 2, only=against_textbook)
        run("SD 1.5 at 512 px, 1 image", UNet2DConditionModel(**SD15), 1, only=against_plain)
    if device != "cpu" and not options.tiny:
        for images in (1, 4):
            run(f"SDXL, {images} images", unet(SDXL), images)
    if options.output:
        with written_whole(options.output) as temporary:
            temporary.write_text(json.dumps({"device": device, "rounds": options.rounds, "tables": results}, indent=1))


if __name__ == "__main__":
    sys.exit(run_command(main))
