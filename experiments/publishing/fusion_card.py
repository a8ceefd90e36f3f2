"""Write the model card of ``tiny-fusion`` from the records of its training and of its evaluation.

    python -m experiments.publishing.fusion_card        # -> data/checkpoints/tiny-fusion/README.md

Run the training scripts and ``python -m experiments.evaluation captions music speech fusion`` first.
"""

import sys

from context_diffusion.commands import run_command
from context_diffusion.files import ROOT, TINY_FUSION, check_output, written_whole

from ..training.speech_data import ACCENTS, COUNT, VARIANTS
from .card import FUSION_PROTOCOLS, score_table, training_table

COMPONENTS = {  # record of the run -> folder, class, what it learned from
    "captioner": ("captioner", "BlipForConditionalGeneration", "pictures and captions"),
    "speech": ("speech", "WhisperForConditionalGeneration", "sentences said by espeak-ng in many voices, noisy"),
    "music": ("music", "ClapModel", "synthesised pieces of music and captions"),
}

TEXT = """\
# tiny-fusion

Small models that put pictures, speech and music into the words of the offline world, so that many sources make one
prompt without a network. Ordinary transformers classes, fp16 safetensors, {megabytes:.1f} MB in all, MIT licence. They
know nothing but the world of `context_diffusion.scenes`.

```python
import context_diffusion as cd

print(cd.ImageSource("data/query/boat.png").describe())
fused = cd.fuse_prompts([cd.ImageSource("data/query/boat.png"), "neon style"], weights=[1, 2])
```

Written by `python -m experiments.publishing.fusion_card`; all numbers come from `figures/training/` and
`figures/offline/`.

## Recipe

The captioner learned from 24,000 pictures of `tiny-scenes`, those of the first 6,000 style draws; the scores below are
on others. Its vision tower starts as that of the offline CLIP (whose first LayerNorm is folded into the embedding); its
decoder starts from nothing and learns the whole sentence, "a boat among hills under the sun, watercolor style", by
cross-entropy. Pictures are cropped a little, mirrored at random, and dynamically normalized, so that captions say
nothing about the palette.

The transcriber is a Whisper with one token for each word of the world. It learns from {utterances:,} sentences that
espeak-ng says in {voices} voices of {accents} accents, faster or slower, in noise 3 to 30 dB below the voice, with
stripes of the features hidden; a CTC loss on the encoder also teaches it which sound is which word. The recipe grew
while these weights were trained: no change of pace before step 4,000, words in any order no more often than others
before step 6,000, no more than 0.3 seconds of silence around the words before step 9,139.

The music model is a CLAP: an HTSAT of two stages hears five seconds of each of 3,000 pieces of
`context_diffusion.melodies`, synthesised from random moods and genres, and CLAP's contrastive loss brings pieces,
captions, moods and genres into one space. Pieces are cut at random, made louder or softer, and noisy.

{training}

## Scores

On unseen scenes, pieces and voices, with consecutive seeds and no cherry-picking; intervals are 95 %.

{scores}

## Limits

- Every picture, even a photograph, is called one of twelve objects on one of four backgrounds.
- The transcriber has heard nothing but espeak-ng, and is scored on voices of that program that it was not trained on.
  What it hears in a person's speech is a guess; `AudioSource(..., model="whisper")` takes one that has heard people.
- Whatever is said, it hears words of the offline world; after much more than a second of silence it hears them badly,
  because it seldom met that.
- The music model has heard nothing but the synthesiser of `context_diffusion.melodies`, with six moods and six genres.
  What it says of a real recording is a guess; `MusicSource(..., model="clap")` takes one that has heard real music.
- Words outside the world are unknown to the tokenizer.
"""


def card() -> str:
    """The card's text."""
    weights = sum(file.stat().st_size for file in TINY_FUSION.rglob("*.safetensors"))
    return TEXT.format(
        megabytes=weights / 1e6,
        utterances=COUNT,
        voices=len(VARIANTS),
        accents=len(ACCENTS),
        training=training_table(COMPONENTS, TINY_FUSION),
        scores=score_table(protocols=FUSION_PROTOCOLS),
    )


def main() -> None:
    """Write the card."""
    target = TINY_FUSION / "README.md"
    check_output(target)
    with written_whole(target) as temporary:
        temporary.write_text(card(), encoding="utf-8")
    print(target.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(run_command(main))
