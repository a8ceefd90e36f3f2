"""Write the model card of ``tiny-fusion`` from the records of its training and of its evaluation.

    python -m experiments.publishing.fusion_card        # -> data/checkpoints/tiny-fusion/README.md

Run the training scripts and ``python -m experiments.evaluation.offline --only captions,music,speech`` first.
"""

from context_diffusion.files import ROOT, TINY_FUSION, written_whole

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
prompt with no network. Ordinary transformers classes, fp16 safetensors, {megabytes:.1f} MB in all, MIT licence. They
know nothing but the world of `context_diffusion.scenes`.

```python
import context_diffusion as cd

print(cd.ImageSource("data/query/boat.png").describe())
fused = cd.fuse_prompts([cd.ImageSource("data/query/boat.png"), "neon style"], weights=[1, 2])
```

Written by `python -m experiments.publishing.fusion_card`; all numbers come from `figures/training/` and
`figures/offline/`.

## Recipe

The same 24,000 pictures as for `tiny-scenes`, none of which the scores below see. The captioner's vision tower starts
as that of the offline CLIP (its first LayerNorm folded into the embedding); the decoder starts from nothing and learns
the whole sentence, "a boat among hills under the sun, watercolor style", by cross-entropy. Pictures are cropped a
little, mirrored or not, and dynamically normalized, so captions say nothing of the palette.

The transcriber is a Whisper with one token for each word of the world. It learns from {utterances:,} sentences that
espeak-ng says in {voices} voices of {accents} accents, played faster or slower, in noise 3 to 30 dB below, with stripes
of the features hidden; beside it, a CTC loss teaches the encoder which sound is which word. The recipe grew while these
weights learned: no change of pace before step 4,000, words in any order no more often than others before step 6,000,
no more than 0.3 seconds of silence around the words before step 9,139.

The music model is a CLAP: an HTSAT of two stages hears five seconds of 3,000 pieces of `context_diffusion.melodies`,
synthesised from drawn moods and genres, and meets their captions, moods and genres in one space by CLAP's contrastive
loss. Pieces are cut at random, made louder or softer, and noisy.

{training}

## Scores

Unseen scenes, pieces and voices, consecutive seeds, nothing picked; 95 % intervals.

{scores}

## Limits

- Every picture is called one of twelve objects on one of four backgrounds, a photograph too.
- The transcriber has heard nothing but espeak-ng, and is scored on voices of that program that it was not trained on.
  What it hears in a person's speech is a guess; `AudioSource(..., model="whisper")` takes one that has heard people.
- Whatever is said, it hears words of the offline world, and those that come after much more than a second of silence
  badly: it seldom met that.
- The music model has heard nothing but the synthesiser of `context_diffusion.melodies`: six moods, six genres. What it
  says of a real recording is a guess; `MusicSource(..., model="clap")` takes one that has heard real music.
- Words outside the world are unknown to the tokenizer.
"""


def main() -> None:
    """Write the card."""
    weights = sum(file.stat().st_size for file in TINY_FUSION.rglob("*.safetensors"))
    text = TEXT.format(
        megabytes=weights / 1e6,
        utterances=COUNT,
        voices=len(VARIANTS),
        accents=len(ACCENTS),
        training=training_table(COMPONENTS, TINY_FUSION),
        scores=score_table(protocols=FUSION_PROTOCOLS),
    )
    target = TINY_FUSION / "README.md"
    with written_whole(target) as temporary:
        temporary.write_text(text)
    print(target.relative_to(ROOT))


if __name__ == "__main__":
    main()
