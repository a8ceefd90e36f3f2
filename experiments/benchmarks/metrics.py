"""Throughput of the metrics on 1,000 pictures against the loop one would write first, in one run.

    python -m experiments.benchmarks.metrics [--images 1000]

Both sides of a line do the same arithmetic on the same pictures, one after the other in this process, and their values
are printed: a ratio of two different answers would mean nothing. The network is a ViT of the offline models' size with
random weights. Ratios travel between machines; seconds do not.
"""

import itertools
import sys
import time

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linprog

from context_diffusion import metrics
from context_diffusion.checks import check_count
from context_diffusion.commands import Parser, run_command


def pictures(count: int) -> list[Image.Image]:
    """Draw two-coloured, noisy pictures of 128 pixels, each its own."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        array = np.full((128, 128, 3), rng.integers(0, 256, 3))
        left, top = rng.integers(8, 60, 2)
        array[top : top + 60, left : left + 50] = rng.integers(0, 256, 3)
        found.append(Image.fromarray(np.clip(array + rng.normal(0, 6, array.shape), 0, 255).astype(np.uint8)))
    return found


def small_vit():
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512, image_size=64, patch_size=8
    )
    model, prepare = ViTModel(config, add_pooling_layer=False).eval(), metrics.Preprocess(64)
    return lambda images: model(prepare(images)).last_hidden_state[:, 0]


def embed_one_by_one(images, encode):
    with torch.no_grad():
        return [encode([image])[0].double().numpy() for image in images]


def pairs_in_a_loop(rows):
    return np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.combinations(rows, 2)])


def kernel_in_a_loop(x, y):
    def mean(a, b, same):
        values = [(p @ q / len(p) + 1) ** 3 for i, p in enumerate(a) for j, q in enumerate(b) if not (same and i == j)]
        return np.mean(values)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def edges_in_a_loop(first, second):
    """F1 by the distance of every edge pixel to every other, without a distance transform."""
    scores = []
    for a, b in zip(first, second, strict=True):
        p, q = np.argwhere(a), np.argwhere(b)
        distance = np.sqrt(((p[:, None] - q[None]) ** 2).sum(axis=-1))
        precision, recall = (distance.min(axis=1) <= 2).mean(), (distance.min(axis=0) <= 2).mean()
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return np.mean(scores)


def movers_without_structure(palettes, target):
    """Earth mover's distance with the constraints written out densely for every pair."""
    values = []
    for palette in palettes:
        n, m = len(palette.weights), len(target.weights)
        cost = np.linalg.norm(palette.lab[:, None] - target.lab[None], axis=-1)
        rows = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])[:-1]
        amounts = np.concatenate([palette.weights, target.weights])[:-1]
        values.append(linprog(cost.ravel(), A_eq=rows, b_eq=amounts, method="highs-ipm").fun)
    return np.mean(values)


def timed(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def report(name: str, count: int, ours, naive) -> None:
    (ours_s, ours_value), (naive_s, naive_value) = timed(ours), timed(naive)
    print(
        f"| {name} | {count / ours_s:,.0f} | {count / naive_s:,.0f} | {naive_s / ours_s:.1f}x "
        f"| {float(ours_value):.5f} | {float(naive_value):.5f} |",
        flush=True,
    )


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    count = check_count("--images", parser.parse_args().images, 10**6, low=20)
    images, encode = pictures(count), small_vit()
    encode(images[:2])  # first call
    rows = metrics.reference_scores(images, np.eye(128), encode)  # unit rows, to be compared without the network
    features, half = torch.from_numpy(rows), count // 2
    edges = [np.asarray(image.convert("L").resize((64, 64))) > 128 for image in images]
    outlines = [edge ^ np.roll(edge, 1, axis=1) | (edge ^ np.roll(edge, 1, axis=0)) for edge in edges]
    outlines = [outline if outline.any() else np.eye(64, dtype=bool) for outline in outlines]
    palettes = [metrics.palette_of(image) for image in images[: count // 10]]
    x, y = rows[: count // 5] * 10, rows[-(count // 5) :] * 10

    print(f"{count} pictures, {torch.get_num_threads()} thread(s), torch {torch.__version__}\n")
    print(
        "| score | ours, per second | naive, per second | ratio | our value | naive value |\n|---|---|---|---|---|---|"
    )
    report("DINO of one set, network included", count, lambda: metrics.pairwise_similarity(images, encode).value,
           lambda: pairs_in_a_loop(embed_one_by_one(images, encode)))  # fmt: skip
    report("DINO of one set, from embeddings", count, lambda: metrics.pairwise_similarity(features).value,
           lambda: pairs_in_a_loop(rows))  # fmt: skip
    report("kernel distance, a fifth against a fifth", len(x),
           lambda: metrics.kernel_distance(torch.from_numpy(x), torch.from_numpy(y)).value,
           lambda: kernel_in_a_loop(x, y))  # fmt: skip
    report("edge F1", half, lambda: metrics.edge_f1(outlines[:half], outlines[-half:]).value,
           lambda: edges_in_a_loop(outlines[:half], outlines[-half:]))  # fmt: skip
    report("palette distance, palettes given", len(palettes),
           lambda: metrics.palette_distance(palettes, palettes[0]).value,
           lambda: movers_without_structure(palettes, palettes[0]))  # fmt: skip
    spent, _ = timed(lambda: metrics.frechet_distance(features[:half], features[half:]))
    print(
        f"\nFrechet distance of {half} and {count - half} embeddings of 128 numbers, error bars included: {spent:.2f} s"
    )
    spent, _ = timed(lambda: [metrics.palette_of(image) for image in images[: count // 10]])
    print(f"Palette of one picture: {spent / (count // 10) * 1000:.1f} ms")


if __name__ == "__main__":
    sys.exit(run_command(main))
