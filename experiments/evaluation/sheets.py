"""Labelled sheets of pictures at their own resolution, written small enough for a repository."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from context_diffusion.images import ImageLike, image_grid, load_image, resize, save_image

LIMIT = 300_000  # bytes
QUALITIES = (90, 80, 70, 60, 50)
GAP, PAD, TEXT = 2, 6, 13  # pixels


def labelled_sheet(
    rows: Mapping[str, Sequence[ImageLike]], titles: Sequence[str] = (), *, cell: int = 128
) -> Image.Image:
    """Stack named rows of pictures, with ``titles`` above the columns; cells are ``cell`` pixels square."""
    counts = {len(pictures) for pictures in rows.values()}
    if len(counts) != 1 or not min(counts):
        raise ValueError(f"Each row of a sheet has the same number of pictures, at least one; got {sorted(counts)}.")
    if titles and len(titles) != max(counts):
        raise ValueError(f"Give one title for each column: {max(counts)} column(s), {len(titles)} title(s).")
    cells = [resize(load_image(image), cell, "pad") for pictures in rows.values() for image in pictures]
    grid = image_grid(cells, columns=max(counts), gap=GAP)
    font = ImageFont.load_default(TEXT)
    left = int(max((font.getlength(part) for name in rows for part in name.split("\n")), default=0)) + 2 * PAD
    top = TEXT + 2 * PAD if titles else PAD
    sheet = Image.new("RGB", (left + grid.width + PAD, top + grid.height + PAD), "white")
    sheet.paste(grid, (left, top))
    pen = ImageDraw.Draw(sheet)
    for number, name in enumerate(rows):
        middle = top + number * (cell + GAP) + cell / 2
        pen.multiline_text((left - PAD, middle), name, "black", font, anchor="rm", align="right")
    for number, title in enumerate(titles):
        pen.text((left + number * (cell + GAP) + cell / 2, top - PAD), title, "black", font, anchor="ms")
    return sheet


def save_sheet(image: Image.Image, path: Path, limit: int = LIMIT) -> Path:
    """Write a sheet as WebP in at most ``limit`` bytes: first the quality is lowered, then the size."""
    scale = 1.0
    while True:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        scaled = image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)
        for quality in QUALITIES:
            encoded = io.BytesIO()
            scaled.save(encoded, "WEBP", quality=quality)
            if encoded.tell() <= limit or size == (1, 1):
                return save_image(scaled, path, quality=quality)
        scale *= 0.8
