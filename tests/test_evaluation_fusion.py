"""The protocol from speech and photograph to picture: its runs, its requests, and what it counts."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from worlds import misplace

from context_diffusion.fusion import Description
from context_diffusion.fusion.speech import Transcriber
from context_diffusion.scenes import BACKGROUNDS, OBJECTS, STYLES
from context_diffusion.scenes.judge import Judge
from experiments.evaluation import harness
from experiments.evaluation import microphone_and_camera as fusion
from experiments.evaluation.bench import Bench
from experiments.evaluation.microphone_and_camera import CONDITIONS, SENTENCE, draw_run, fused, requests
from experiments.evaluation.transcripts import AROUND
from experiments.training.speech_data import UNSEEN

RUNS = [draw_run(number) for number in range(50)]
HEARD = Description(SENTENCE, 0.9, "speech")


def test_each_style_meets_five_voices_and_each_voice_five_styles_and_none_repeats():
    assert Counter(one.style for one in RUNS) == dict.fromkeys(STYLES, 5)
    assert Counter(one.utterance.voice for one in RUNS) == dict.fromkeys(UNSEEN, 5)
    assert len({(one.style, one.utterance.voice) for one in RUNS}) == 50
    assert len({one.picture.tobytes() for one in RUNS}) == len({one.photograph.tobytes() for one in RUNS}) == 50
    assert {one.utterance.text for one in RUNS} == {"a boat by the sea"}
    assert len({one.utterance.speed for one in RUNS}) > 10


def test_requests_differ_in_words_and_context_alone():
    styles = [Description(f"{one.style} style", 0.8) for one in RUNS[:3]]
    mistaken = Description("a goat by the sea", 0.6)
    made = {c.name: requests(c, RUNS[:3], [HEARD, mistaken, HEARD], styles) for c in CONDITIONS}
    assert all([request.seed for request in row] == [0, 1, 2] for row in made.values())
    assert [request.prompt for request in made["speech, photograph"]] == [SENTENCE, "a goat by the sea", SENTENCE]
    assert [request.prompt for request in made["typed, photograph"]] == [SENTENCE] * 3
    assert [request.prompt for request in made["speech, style word alone"]][:2] == [
        "a boat by the sea, flat style", "a goat by the sea, line art style"
    ]  # fmt: skip
    assert made["speech, the picture itself"][1].context_images == (RUNS[1].picture,)
    for name in ("speech, photograph", "speech, photograph, its style word", "typed, photograph"):
        assert [request.context_images for request in made[name]] == [(one.photograph,) for one in RUNS[:3]]
    assert {
        request.context_images for name in ("speech alone", "speech, style word alone") for request in made[name]
    } == {()}


def test_where_nothing_is_heard_the_photograph_is_left():
    assert fused([Description("", 0.0, "silence")]) == ""
    assert fused([Description("", 0.0, "silence"), Description("neon style")]) == "neon style"


class Reader(torch.nn.Module):
    """Reads object (red / 20) and style (blue / 20) off a picture."""

    def forward(self, values):
        found = ((values.mean(dim=(2, 3)) + 1) * 127.5 / 20).round().long()
        heads = [torch.eye(n)[found[:, i]] for i, n in enumerate((len(OBJECTS), len(BACKGROUNDS), len(STYLES)))]
        return SimpleNamespace(logits=torch.cat(heads, dim=1))


def draw(made):
    """A model that takes the style from a word, else from a context if its seed is not 3, else draws flat."""
    pictures = []
    for request in made:
        named = [style for style in STYLES if f"{style} style" in request.prompt]
        lent = STYLES[request.seed] if request.context_images and request.seed != 3 else "flat"
        thing = OBJECTS.index("boat" if "boat" in request.prompt else "cat")
        pictures.append(Image.new("RGB", (128, 128), (20 * thing, 0, 20 * STYLES.index([*named, lent][0]))))
    return pictures


class Hears(Transcriber):
    """Takes the last of four sentences for another one, and every second where no silence comes before it."""

    rate, heard, tight = 16_000, 0, 0

    def __init__(self):
        pass

    def __call__(self, sound):
        if sound.samples[:AROUND].any():
            self.tight += 1
            return Description(SENTENCE if self.tight % 2 else "a goat", 0.9)
        self.heard += 1
        return Description("a cat by the sea" if self.heard == 4 else SENTENCE, 0.9)


def test_the_protocol_counts_what_the_judge_sees(monkeypatch):
    sees = SimpleNamespace(
        describe_all=lambda images: [Description(f"a cat, {STYLES[i]} style") for i, _ in enumerate(images)]
    )
    monkeypatch.setattr(fusion.Transcriber, "from_pretrained", lambda: Hears())
    monkeypatch.setattr(fusion.Captioner, "from_pretrained", lambda: sees)
    monkeypatch.setattr(fusion, "say", lambda utterance: np.random.default_rng(0).uniform(-0.5, 0.5, 4800))
    bench = Bench(quick=True)
    bench.judge, bench.draw = Judge(Reader()), draw
    report = fusion.run(bench)
    found = {line.name: line.estimate.value for line in report.lines}
    assert found["sentence heard as it was said, recording without silence around it"] == 0.5
    assert found["sentence heard as it was said"] == 0.75 and found["style word read off the photograph"] == 1.0
    both, boat, style = (
        {c.name: found[f"{what}, {c.name}"] for c in CONDITIONS} for what in ("boat and style", "boat", "style")
    )
    assert both["speech, photograph"] == boat["speech, photograph"] == style["speech, photograph"] == 0.75
    assert both["speech, photograph, its style word"] == 0.75 and style["speech, photograph, its style word"] == 1.0
    assert boat["typed, photograph"] == 1.0 and both["typed, photograph"] == 0.75
    assert style["speech alone"] == both["speech alone"] == 0.25
    assert found["boat and style, speech alone, minus speech, photograph, its style word"] == -0.5
    assert found["boat and style, speech, photograph, its style word, halftone"] == 0.0
    assert [line.name for line in report.lines if line.aim] == ["boat and style, speech, photograph, its style word"]
    assert report.sheets["pictures"].height > 4 * 96


def test_the_protocol_is_skipped_with_a_sentence_where_something_is_missing(tmp_path, monkeypatch, capsys):
    misplace(monkeypatch, "transcriber", tmp_path / "none")
    assert "fusion" in harness.OFFLINE
    assert not harness.run("fusion", Bench(quick=True), tmp_path)
    assert "fusion: not run. The offline transcriber is not at" in capsys.readouterr().out
