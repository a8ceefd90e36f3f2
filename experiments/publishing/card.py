"""Write the model card of ``tiny-scenes`` from the records of its training and of its evaluation.

    python -m experiments.publishing.card        # -> data/checkpoints/tiny-scenes/README.md

Every number in the card comes from ``figures/training/*.json`` and ``figures/offline/*.json``; run the training scripts
and ``python -m experiments.evaluation offline`` first.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from context_diffusion.commands import run_command
from context_diffusion.files import ROOT, TINY_SCENES, check_output, written_whole
from context_diffusion.loading import read_settings
from context_diffusion.scenes import TinyScenes
from context_diffusion.scenes.dataset import GROUP

from ..evaluation.harness import OFFLINE
from ..training import data

FUSION_PROTOCOLS = ("captions", "music", "speech", "fusion")  # scores of tiny-fusion, which has a card of its own
COMPONENTS = {  # record of the run -> folders, class, what it learned from
    "vae": ("vae", "AutoencoderKL", "pictures"),
    "decoder": ("vae, its decoder alone", "AutoencoderKL", "pictures"),
    "clip": ("clip, text_encoder, image_encoder", "CLIPModel", "pictures and captions"),
    "unet": ("unet, context_projector", "UNet2DConditionModel", "latents, captions, context pictures"),
    "controlnet-canny": ("controlnet-canny", "ControlNetModel", "Canny edges of the same scene in another style"),
    "controlnet-depth": ("controlnet-depth", "ControlNetModel", "exact depth"),
    "depth": ("depth", "DPTForDepthEstimation", "pictures and exact depth"),
    "dino": ("dino", "ViTModel", "pictures alone, no label"),
    "judge": ("judge", "ResNetForImageClassification", "pictures and their labels, for evaluation only"),
    "texture": ("texture", "ReaderNetwork", "pictures and what they were drawn from, for evaluation only"),
}

TEXT = """\
# tiny-scenes

A family of small models that draws twelve kinds of object over four backgrounds in ten styles, 128x128 pixels, on two
CPU cores in seconds. Ordinary diffusers and transformers classes, fp16 safetensors, MIT licence. They are for learning,
testing and comparing methods, and know nothing but their world.

```python
import context_diffusion as cd

model = cd.ContextDiffusion.from_pretrained("tiny-scenes")
pipe = cd.load_pipeline("tiny-scenes")  # a plain StableDiffusionPipeline
```

Written by `python -m experiments.publishing.card`; all numbers come from the files named below.

## Data

`context_diffusion.scenes` draws the pictures on the spot: {group} scenes for each of {groups:,} draws of a style.
Held-out draws start at number {held_out:,}. A caption names the object, the background and mostly the style; palette
and texture parameters are free. The contexts of a training sample are other scenes of its style draw, never the target.

## Recipe

`make train` runs all of it. The weights are averages over the steps. The minutes are upper bounds, because the machine
did other work as well. A sum is a run and those that continued from its weights (`--start`). The curves are in
`figures/training/`, with every setting of each run in the JSON next to them.

{training}

`text_encoder` and `image_encoder` are the two towers of `clip`.
{schedule}

Two stretches were run in a trial whose code is not kept; what it found is in the scripts now, which reach the same from
nothing. The autoencoder of the table's first row was trained on with the equivariance loss: 4,000 steps of 8 crops of
96 pixels, at 4e-4, 30 minutes. The U-Net's row begins where the trial left it: after 278,000 samples with AdamW and
301,000 with Muon. Its steps from 27,351 to 27,511 were of 64 samples, a trial of larger batches too short to tell, and
in the last 17,000 the rate falls: 2,008,000 samples in all. The last run of `controlnet-canny` began beside the
U-Net's, on the average of its weights at that time, and went on from step 17,117 on those published here. The networks
that score (`clip`, `depth`, `judge`, and `dino` at first) saw the first 6,000 draws.

## Scores

`python -m experiments.evaluation offline` makes them (records and sheets are in `figures/offline/`), on unseen scenes,
with consecutive seeds and no cherry-picking; intervals are 95 %.

{scores}

## Limits

- Aims marked "missed" are missed. Edge F1 can hardly be better than that of what is "really drawn", because texture has
  edges that no query has (style by style, from six queries each: `figures/offline/layout-styles.md`).
- Any model can continue from its published weights, e.g.
  `python -m experiments.training.unet --start data/checkpoints/tiny-scenes`.
- Words outside the world fall apart into bytes and mean nothing to the model. Prompts longer than about twenty words
  use positions that hardly any training caption reached.
- The judge is right about object and style of most real scenes (its own accuracy is in the table): a score close to
  that is at the ceiling of what it can measure.
- The statistic token is evaluated by zeroing it in a model that was trained with it.
"""


def schedule(models: Path = TINY_SCENES) -> str:
    """Say in a sentence what the U-Net predicts and where its noise schedule ends."""
    settings = read_settings(models / "scheduler" / "scheduler_config.json")
    what = {"epsilon": "noise", "v_prediction": "v (Salimans and Ho 2022)"}[settings["prediction_type"]]
    end = (
        "rescaled to end in pure noise (Lin et al. 2023): no palette hides in the noise that sampling starts from."
        if settings["rescale_betas_zero_snr"]
        else f"with a beta that ends at {settings['beta_end']:g}: the first noise still lets a seed colour the picture."
    )
    return f"The U-Net predicts {what} on Stable Diffusion's schedule,\n{end}"


def training_table(components: Mapping[str, tuple[str, str, str]] = COMPONENTS, models: Path = TINY_SCENES) -> str:
    """One row for each run on record whose weights are in the folder ``models``."""
    rows = ["| folder | class | learned from | steps | batch | minutes |", "|---|---|---|---|---|---|"]
    for name, (folder, kind, source) in components.items():
        file = ROOT / "figures" / "training" / f"{name}.json"
        if file.is_file() and (models / folder.split(",")[0]).is_dir():
            last = read_settings(file)
            runs = [*last.get("earlier", []), last]
            steps = " + ".join(f"{run['steps_done']:,}" for run in runs)
            minutes = " + ".join(f"{run['minutes']:.0f}" for run in runs)
            size = last["recipe"]["batch_size"]
            rows.append(f"| {folder} | `{kind}` | {source} | {steps} | {size} | {minutes} |")
    return "\n".join(rows)


def score_table(folder: Path = ROOT / "figures" / "offline", protocols: Sequence[str] | None = None) -> str:
    """One row for each number on record, protocol by protocol: of all protocols, or of those named."""
    rows = ["| protocol | score | value | 95 % interval | n | aim |", "|---|---|---|---|---|---|"]
    for file in sorted(folder.glob("*.json")):
        if protocols is not None and file.stem not in protocols:
            continue
        record = read_settings(file)
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


def card() -> str:
    """The card's text."""
    return TEXT.format(
        groups=data.GROUPS,
        group=GROUP,
        held_out=TinyScenes.HELD_OUT,
        training=training_table(),
        schedule=schedule(),
        scores=score_table(protocols=[name for name in OFFLINE if name not in FUSION_PROTOCOLS]),
    )


def main() -> None:
    """Write the card."""
    target = TINY_SCENES / "README.md"
    check_output(target)
    with written_whole(target) as temporary:
        temporary.write_text(card(), encoding="utf-8")
    print(target.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(run_command(main))
