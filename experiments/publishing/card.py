"""Write the model card of ``tiny-scenes`` from the records of its training and of its evaluation.

    python -m experiments.publishing.card        # -> data/checkpoints/tiny-scenes/README.md

Every number in the card comes from ``figures/training/*.json`` and ``figures/offline/*.json``; run the training scripts
and ``python -m experiments.evaluation.offline`` first.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from context_diffusion.files import ROOT, TINY_SCENES, written_whole

from ..evaluation.offline import PROTOCOLS

FUSION_PROTOCOLS = ("captions", "music", "speech", "fusion")  # scores of tiny-fusion, which has a card of its own
COMPONENTS = {  # record of the run -> folders, class, what it learned from
    "vae": ("vae", "AutoencoderKL", "pictures"),
    "clip": ("clip, text_encoder, image_encoder", "CLIPModel", "pictures and captions"),
    "unet": ("unet, context_projector", "UNet2DConditionModel", "latents, captions, context pictures"),
    "controlnet-canny": ("controlnet-canny", "ControlNetModel", "Canny edges of the same scene in another style"),
    "controlnet-depth": ("controlnet-depth", "ControlNetModel", "exact depth"),
    "depth": ("depth", "DPTForDepthEstimation", "pictures and exact depth"),
    "dino": ("dino", "ViTModel", "pictures alone, no label"),
    "judge": ("judge", "ResNetForImageClassification", "pictures and their labels; for evaluation only"),
}

TEXT = """\
# tiny-scenes

A family of small models that draws twelve kinds of object over four backgrounds in ten styles, 128x128 pixels, on two
CPU cores in seconds. Ordinary diffusers and transformers classes, fp16 safetensors, MIT licence. For learning, testing
and comparing methods; it knows nothing but its world.

```python
import context_diffusion as cd

model = cd.ContextDiffusion.from_pretrained("tiny-scenes")
pipe = cd.load_pipeline("tiny-scenes")  # a plain StableDiffusionPipeline
```

Written by `python -m experiments.publishing.card`; all numbers come from the files named below.

## Data

`context_diffusion.scenes`: 24,000 pictures (6,000 style draws of four scenes each, seeds 0 to 5,999), drawn on the
spot. Held-out seeds start at 1,000,000. A caption names object, background and mostly the style; palette and texture
parameters are free. Contexts of a training sample are other scenes of its style draw, never the target.

## Recipe

`make train` runs all of it. Averaged weights, cosine schedule, AdamW; one thread of a two-core CPU beside other work,
so the minutes are upper bounds; bf16 where the CPU has it (AMX), fp32 in all runs but the first, on one that has not.
A sum is a run and those that went on from its weights (`--warm`). The curves are in `figures/training/`,
with every setting of each run in the JSON beside them.

{training}

The two towers of `clip` were copied to `text_encoder` and `image_encoder` when the U-Net's training began and have been
frozen since; `clip` itself was then trained on, for scoring. The U-Net predicts noise on Stable Diffusion's schedule
with its end moved from 0.012 to 0.02: at 0.012 a quarter to a third of the variance of a picture's mean colour is left
at the first step of sampling, and palettes come out muted. What is left at 0.02 still lets a seed colour the picture:
with contexts, `ContextDiffusion` holds their mean colour through the first steps (`conditioning.HeldColour`).
{history}

## Scores

`python -m experiments.evaluation.offline` (records and sheets in `figures/offline/`), unseen scenes, consecutive
seeds, nothing picked; 95 % intervals.

{scores}

## Limits

- Aims marked "missed" are missed. Edge F1 can reach at most what "really drawn" does, for texture has edges that no
  query has. Most of what lacks to that is in neon, pixel art, blueprint and flat pictures
  (`figures/offline/layout-styles.md`): outlines wobble, for the U-Net is short of training steps. Any model goes on
  from its published weights with `--warm`, e.g. `python -m experiments.training.unet --warm`.
- Words outside the world fall to bytes and mean nothing to the model. Prompts longer than about twenty words use
  positions that hardly any training caption reached.
- The judge sees object and style of real scenes rightly most of the time (its own accuracy is in the table): a score
  near it is at the ceiling of what it can measure.
- The statistic token is evaluated by zeroing it in a model that was trained with it.
"""

HISTORY = """These weights took three stretches: 3,500 steps on the schedule that ends at 0.012 with min-SNR-5 weights,
1,000 on the one that ends at 0.02, the others with the weights that the script has now (the curve shows the breaks).
The ControlNets' first runs were beside the U-Net's, on its state at the time, that of Canny even on the old schedule;
the later runs were on the U-Net as it is now."""


def training_table(components: Mapping[str, tuple[str, str, str]] = COMPONENTS, models: Path = TINY_SCENES) -> str:
    """One row for each run on record whose weights are in the folder of ``models``."""
    rows = ["| folder | class | learned from | steps | batch | minutes |", "|---|---|---|---|---|---|"]
    for name, (folder, kind, source) in components.items():
        file = ROOT / "figures" / "training" / f"{name}.json"
        if file.is_file() and (models / folder.split(",")[0]).is_dir():
            last = json.loads(file.read_text())
            runs = [*last.get("earlier", []), last]
            steps = " + ".join(f"{run['steps_done']:,}" for run in runs)
            minutes = " + ".join(f"{run['minutes']:.0f}" for run in runs)
            size = last["recipe"]["batch_size"]
            rows.append(f"| {folder} | `{kind}` | {source} | {steps} | {size} | {minutes} |")
    return "\n".join(rows)


def score_table(folder: Path = ROOT / "figures" / "offline", protocols: Sequence[str] | None = None) -> str:
    """One row for each number on record, protocol by protocol; all of them, or those of some ``protocols``."""
    rows = ["| protocol | score | value | 95 % interval | n | aim |", "|---|---|---|---|---|---|"]
    for file in sorted(folder.glob("*.json")):
        if protocols is not None and file.stem not in protocols:
            continue
        record = json.loads(file.read_text())
        for number in record["numbers"]:
            low, high = (number.get(bound) for bound in ("low", "high"))
            interval = "" if low is None or high is None else f"{low:.3g} to {high:.3g}"
            bound = next((bound for bound in ("at_least", "at_most") if bound in number), None)
            aim = ""
            if bound:
                aim = f"{bound.replace('_', ' ')} {number[bound]:g}: {'met' if number['met'] else '**missed**'}"
            value = "-" if number["value"] is None else f"{number['value']:.3g}"
            rows.append(f"| {file.stem} | {number['name']} | {value} | {interval} | {number['n']} | {aim} |")
    return "\n".join(rows)


def main() -> None:
    """Write the card."""
    target = TINY_SCENES / "README.md"
    scores = score_table(protocols=[name for name in PROTOCOLS if name not in FUSION_PROTOCOLS])
    with written_whole(target) as temporary:
        temporary.write_text(TEXT.format(training=training_table(), scores=scores, history=HISTORY))
    print(target.relative_to(ROOT))


if __name__ == "__main__":
    main()
