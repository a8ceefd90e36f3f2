"""What the autoencoder keeps of a picture: PSNR on unseen scenes, overall and style by style."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image

from context_diffusion.checkpoints import load_part
from context_diffusion.metrics import estimate_mean
from context_diffusion.metrics.inputs import batched
from context_diffusion.scenes import STYLES

from ..training.data import to_tensor
from .bench import Bench
from .report import Report
from .sheets import labelled_sheet
from .unseen import sample

BATCH_SIZE = 25


@torch.inference_mode()
def reconstruct(vae: torch.nn.Module, pixels: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Encode to the mean of the posterior, without its noise, and decode; rounded to 8 bits as a viewer sees it."""
    decoded = []
    for batch in batched(pixels, BATCH_SIZE):
        values = vae.decode(vae.encode(to_tensor(np.stack(batch))).latent_dist.mode()).sample
        levels = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        decoded.append(rearrange(levels, "images rgb height width -> images height width rgb").numpy())
    return np.concatenate(decoded)


@cache
def autoencoder(bench: Bench) -> torch.nn.Module:
    """The model's own, in single precision."""
    from diffusers import AutoencoderKL

    return load_part(AutoencoderKL, bench.row.location, subfolder="vae").eval()


@cache
def originals_and_decoded(bench: Bench) -> tuple[UInt8[np.ndarray, "n h w 3"], UInt8[np.ndarray, "n h w 3"]]:
    """500 unseen scenes and what the autoencoder makes of them; worked out once for all protocols."""
    pixels = np.stack([one.pixels for one in sample(bench.count(500, 20))])
    return pixels, reconstruct(autoencoder(bench), pixels)


def decoded(bench: Bench, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """What is left of pictures, encoded and decoded: no U-Net's pictures can be expected to be better."""
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    return [Image.fromarray(one) for one in reconstruct(autoencoder(bench), pixels)]


def psnr(first: UInt8[np.ndarray, "n h w 3"], second: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, " n"]:
    """Peak signal-to-noise ratio of each pair in decibels: 10 log10(255^2 / mean squared error over pixels and RGB).

    >>> psnr(np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)).item()
    0.0
    """
    error = np.square(first.astype(np.float64) - second).mean(axis=(1, 2, 3))
    return 10 * np.log10(255**2 / error)


def columns_by_style(names: Sequence[str], per_style: int = 2) -> list[list[int]]:
    """Indices of the first picture of each style, of the second, ..., a list for each."""
    places = [[i for i, name in enumerate(names) if name == style] for style in STYLES]
    return [[of_style[k] for of_style in places] for k in range(min(per_style, *map(len, places)))]


def run(bench: Bench) -> Report:
    """PSNR of 500 unseen scenes; originals above their reconstructions."""
    pixels, decoded = originals_and_decoded(bench)
    scores, names = psnr(pixels, decoded), np.array([one.style.name for one in sample(len(pixels))])
    report = Report(notes=["decibels; one picture is one unit, each has a style draw of its own"])
    report.add("PSNR, all styles", estimate_mean(scores), at_least=25)
    for style in STYLES:
        report.add(f"PSNR, {style}", estimate_mean(scores[names == style]), at_least=20)
    rows = {}
    for k, places in enumerate(columns_by_style(names)):
        rows |= {f"original {k + 1}": pixels[places], f"decoded {k + 1}": decoded[places]}
    report.sheets["pictures"] = labelled_sheet({key: list(row) for key, row in rows.items()}, STYLES)
    return report
