"""Time and memory of style alignment in a transformer, in ratios: plain, ours with a cached reference.

    python -m experiments.benchmarks.transformers --tiny   # seconds on one CPU core: a narrow block, few tokens
    python -m experiments.benchmarks.transformers          # FLUX.1's single-stream block in full width, 1,152 tokens

One block with random weights stands for the model, whose 38 are alike. Rounds, ratios and clocks are those of
:mod:`experiments.benchmarks.style_alignment`.
"""

import json
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor, nn

from context_diffusion.alignment.aligner import style_aligned
from context_diffusion.alignment.trajectory import Trajectory
from context_diffusion.checkpoints import find_device
from context_diffusion.checks import check_count
from context_diffusion.commands import Parser, run_command
from context_diffusion.files import check_output, written_whole

from .style_alignment import measure, show

SHIFT = math.log(2)
WIDE = {"attention_head_dim": 128, "num_attention_heads": 24, "axes_dims_rope": (16, 56, 56), "in_channels": 64}
NARROW = {"attention_head_dim": 32, "num_attention_heads": 4, "axes_dims_rope": (4, 14, 14), "in_channels": 16}


class Flux:
    """FLUX.1 with one single-stream block, random inputs of one picture, and a reference of one step."""

    def __init__(self, shape: dict, side: int, words: int, device: str, dtype: torch.dtype):
        torch.manual_seed(0)
        made = FluxTransformer2DModel(
            num_layers=0, num_single_layers=1, joint_attention_dim=64, pooled_projection_dim=64, **shape
        )
        self.network = nn.Module.to(made.eval(), device, dtype)  # diffusers' own warns of nothing
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(20)
        self.pipe, time = SimpleNamespace(transformer=self.network, scheduler=scheduler), scheduler.timesteps[10]
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()
        ids = torch.cat([torch.zeros(len(places), 1), places], dim=1)
        common = {"img_ids": ids, "txt_ids": torch.zeros(words, 3)}

        def text() -> dict[str, Tensor]:
            return {"encoder_hidden_states": torch.randn(1, words, 64), "pooled_projections": torch.randn(1, 64)}

        latents = torch.randn(2, 1, len(places), shape["in_channels"])
        theirs = {f"cond.{name}": rows for name, rows in text().items()}
        self.reference = Trajectory(latents, time[None], torch.tensor([0.5, 1.0]), theirs, ("",), shared=common)
        own = text() | {"hidden_states": torch.randn(1, len(places), shape["in_channels"])}
        given = {name: rows.to(device, dtype) for name, rows in own.items()}
        given |= {name: rows.to(device) for name, rows in common.items()}
        self.given = given | {"timestep": (time[None] / 1000).to(device)}

    def variants(self) -> dict[str, tuple[Callable, Callable]]:
        """Name -> (block to run in, call)."""

        def call() -> None:
            self.network(**self.given, return_dict=False)

        def ours(**settings):
            cached = {"references": self.reference, "cache": True}
            return lambda: style_aligned(self.pipe, branches=("cond",), **cached, **settings)

        return {
            "plain": (nullcontext, call),
            "ours, cached reference": (ours(), call),
            "ours, cached reference, shift": (ours(score_shift=SHIFT), call),
            "ours, cached, untwisted": (ours(placement="untwisted"), call),
        }


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small shapes only")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="write all numbers to this JSON file")
    options = parser.parse_args()
    check_count("--rounds", options.rounds, 1000)
    if options.output:
        check_output(options.output, what="--output")
    device = str(find_device(options.device))
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    if device == "cpu":
        torch.set_num_threads(1)
    shape, side, words = (NARROW, 8, 16) if options.tiny else (WIDE, 32, 128)
    width = shape["attention_head_dim"] * shape["num_attention_heads"]
    title = f"FLUX.1, one single-stream block, {side * side} + {words} tokens x {width}"
    results = {title: measure(Flux(shape, side, words, device, dtype), options.rounds, device)}
    show(title, results[title])
    if options.output:
        with written_whole(options.output) as temporary:
            temporary.write_text(json.dumps({"device": device, "rounds": options.rounds, "tables": results}, indent=1))


if __name__ == "__main__":
    sys.exit(run_command(main))
