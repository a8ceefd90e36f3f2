"""Captions: the likeliest word each time, a confidence that is its probability, a protocol that reads it back."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
)
from worlds import misplace

import context_diffusion as cd
from context_diffusion.checkpoints import find_network
from context_diffusion.fusion import Description, caption
from context_diffusion.fusion.caption import Captioner, ImageSource, confidence
from context_diffusion.images import dynamic_normalization, to_tensor
from context_diffusion.scenes import BACKGROUNDS, OBJECTS, STYLES, Scene, Style, TinyScenes
from context_diffusion.scenes import caption as sentence
from experiments.evaluation import caption_accuracy as captions
from experiments.evaluation import harness
from experiments.evaluation.bench import Bench
from experiments.evaluation.unseen import sample
from experiments.training import captioner as training

SIDE, WIDTH = 16, 32
PICTURES = [Image.effect_noise((2 * SIDE, 2 * SIDE), spread).convert("RGB") for spread in (20, 60, 110)]


def random_blip() -> BlipForConditionalGeneration:
    """A BLIP of 16x16 pixels on the words of the scenes, wide awake: its outputs differ from picture to picture."""
    common = {"hidden_size": WIDTH, "intermediate_size": 64, "num_attention_heads": 4}
    tokenizer = training.new_word_tokenizer()
    text = training.new_captioner(tokenizer).config.text_config.to_dict() | common | {"num_hidden_layers": 1}
    vision = {**common, "num_hidden_layers": 2, "image_size": SIDE, "patch_size": 4, "initializer_range": 0.02}
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.4)
    return model


@cache
def blip_folder() -> Path:
    """A saved random captioner, without a preprocessor, as the offline one is."""
    folder = Path(mkdtemp(prefix="blip-"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        random_blip().save_pretrained(folder)
        training.new_word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner.from_pretrained(blip_folder())


# --- what is written -------------------------------------------------------------------------------------


def by_hand(image: Image.Image) -> tuple[list[int], float]:
    """Greedy decoding word by word from whole forward passes, and the geometric mean of the probabilities."""
    network = BlipForConditionalGeneration.from_pretrained(blip_folder()).eval()
    small = torch.nn.functional.avg_pool2d(to_tensor(image), 2)
    tokens, logs = [2], []
    with torch.no_grad():
        while len(tokens) < 16 and tokens[-1] != 3:
            ids = torch.tensor([[*tokens, 0]])  # the network shifts by one: the last position is not read
            logits = network(pixel_values=dynamic_normalization(small)[0][None], input_ids=ids).logits[0, -2]
            tokens.append(int(logits.argmax()))
            logs.append(float(logits.log_softmax(dim=0).max()))
    return tokens[1:], float(np.exp(np.mean(logs)))


@pytest.mark.parametrize("image", PICTURES)
def test_a_caption_is_the_likeliest_next_word_each_time(captioner, image):
    tokens, sure = by_hand(image)
    said = captioner(image)
    assert said.text == captioner.tokenizer.decode(tokens, skip_special_tokens=True).replace(" ,", ",")
    assert said.confidence == pytest.approx(sure, rel=1e-4)


def test_a_caption_does_not_depend_on_the_others_in_its_batch(captioner, monkeypatch):
    alone = [captioner(image) for image in PICTURES]
    together = captioner.describe_all(PICTURES)
    monkeypatch.setattr(caption, "BATCH_SIZE", 2)
    for other in (together, captioner.describe_all(iter(PICTURES))):
        assert [one.text for one in other] == [one.text for one in alone]
        assert [one.confidence for one in other] == pytest.approx([one.confidence for one in alone], rel=1e-4)
    assert len({one.confidence for one in alone}) == 3


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
@settings(deadline=None)
def test_confidence_is_the_geometric_mean_up_to_the_end(tokens):
    logits = torch.randn(1, len(tokens), 6, generator=torch.Generator().manual_seed(1))
    chances = logits[0].softmax(dim=1)[torch.arange(len(tokens)), torch.tensor(tokens)].tolist()
    said = chances[: tokens.index(3) + 1] if 3 in tokens else chances
    found = confidence(logits, torch.tensor([tokens]), end=3)
    assert found.tolist() == pytest.approx([np.prod(said) ** (1 / len(said))], rel=1e-5)


def test_a_folder_with_an_image_processor_is_fed_by_it(tmp_path):
    random_blip().save_pretrained(tmp_path)
    training.new_word_tokenizer().save_pretrained(tmp_path)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=mean, image_std=std).save_pretrained(
        tmp_path
    )
    plain = Image.new("RGB", (40, 20), (255, 51, 0))
    fed = Captioner.from_pretrained(tmp_path).preprocess(plain)
    expected = (torch.tensor([1.0, 0.2, 0.0]) - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(torch.as_tensor(fed), expected[:, None, None].expand(3, SIDE, SIDE))


# --- as a source -----------------------------------------------------------------------------------------


def test_a_picture_is_a_source_of_its_caption(captioner, tmp_path):
    PICTURES[0].save(tmp_path / "noise.png")
    said = ImageSource(tmp_path / "noise.png", blip_folder()).describe()
    expected = captioner(PICTURES[0])
    assert (said.text, said.confidence) == (expected.text, pytest.approx(expected.confidence))
    assert said.source == "caption of noise.png"
    assert ImageSource(PICTURES[0], captioner).describe().source == "caption of a picture"
    fused = cd.fuse_prompts([ImageSource(PICTURES[0], captioner), "neon style"], [0, 1], max_tokens=32)
    assert fused.text == "neon style"


def test_a_bad_picture_is_reported_before_a_model_is_looked_for(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    for image, error, hint in (
        ("no.png", FileNotFoundError, "no.png"),
        (tmp_path / "empty.png", ValueError, "0 bytes"),
    ):
        with pytest.raises(error, match=hint):
            ImageSource(image, "no-such-captioner").describe()


def test_a_constant_picture_has_a_caption(captioner):
    assert 0 <= captioner(Image.new("RGB", (8, 8), "white")).confidence <= 1


def test_an_unknown_or_missing_captioner_gets_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no captioner 'blimp': give tiny-fusion or blip.*did you mean 'blip'"):
        find_network("captioner", "blimp")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        find_network("captioner", tmp_path)
    misplace(monkeypatch, "captioner", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"python -m experiments\.training\.captioner"):
        Captioner.from_pretrained()
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        Captioner.from_pretrained("nobody/nothing")
    assert find_network("captioner", "blip") == "Salesforce/blip-image-captioning-large"


# --- training --------------------------------------------------------------------------------------------


def test_every_sentence_of_the_world_fits_and_comes_back_from_its_tokens():
    tokenizer = training.new_word_tokenizer()
    style = Style.draw(0)
    said = [
        sentence(Scene(noun, place, sun), Style(name, *list(vars(style).values())[1:]))
        for noun in OBJECTS for place in BACKGROUNDS for sun in (False, True) for name in STYLES
    ]  # fmt: skip
    ids = tokenizer(said).input_ids
    assert max(map(len, ids)) <= training.LENGTH
    assert tokenizer.unk_token_id not in {token for row in ids for token in row}
    assert [tokenizer.decode(row, skip_special_tokens=True).replace(" ,", ",") for row in ids] == said


def test_sentences_are_in_the_order_of_the_pictures():
    drawn = [TinyScenes(2, 7).rendering(index) for index in range(8)]
    assert training.full_captions(2, 7) == [sentence(one.scene, one.style) for one in drawn]


def test_the_loss_is_that_of_the_words_and_not_of_the_padding():
    model = random_blip()
    pixels, ids = torch.randn(2, 3, SIDE, SIDE), torch.tensor([[2, 9, 8, 3, 0, 0], [2, 7, 3, 0, 0, 0]])
    loss = training.caption_loss(model, pixels, ids)
    logits = model(pixel_values=pixels, input_ids=ids).logits.log_softmax(dim=-1)
    said = [(0, 0, 9), (0, 1, 8), (0, 2, 3), (1, 0, 7), (1, 1, 3)]
    torch.testing.assert_close(loss, -sum(logits[row, place, word] for row, place, word in said) / 5)
    torch.testing.assert_close(loss, training.caption_loss(model, pixels, ids[:, :4]))


def test_a_tower_starts_where_clip_ended():
    torch.manual_seed(0)
    model = training.new_captioner(training.new_word_tokenizer()).eval()
    vision = model.config.vision_config
    settings = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size",
                "patch_size", "hidden_act")  # fmt: skip
    tower = CLIPVisionModel(CLIPVisionConfig(**{name: getattr(vision, name) for name in settings})).eval()
    with torch.no_grad():
        for name, weight in tower.named_parameters():
            weight.add_(0.2 * torch.randn(weight.shape) * (0 if "position" in name else 1))
        batch = torch.randn(1, 3, 1, 1).expand(2, 3, 64, 64)  # equal patches: their spread is its own average
        training.start_from_clip(model.vision_model, tower, batch)
        expected = tower.post_layernorm(tower(batch).last_hidden_state)
        torch.testing.assert_close(model.vision_model(batch).last_hidden_state, expected, rtol=1e-3, atol=1e-3)
        other = torch.randn(2, 3, 64, 64)
        assert not torch.allclose(model.vision_model(other).last_hidden_state, expected, atol=0.1)


def test_two_pictures_learned_by_heart_are_told_apart_in_words(tmp_path):
    torch.manual_seed(0)
    model, tokenizer = random_blip(), training.new_word_tokenizer()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1) if weight.ndim > 1 else None
    said = ["a boat among hills, neon style", "an umbrella, flat style"]
    small = torch.stack([torch.nn.functional.avg_pool2d(to_tensor(image), 2) for image in PICTURES[::2]])
    pixels, ids = dynamic_normalization(small)[0], tokenizer(said, padding=True, return_tensors="pt").input_ids
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(120):
        training.caption_loss(model, pixels, ids).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert [one.text for one in Captioner.from_pretrained(tmp_path).describe_all(PICTURES[::2])] == said


# --- the protocol ----------------------------------------------------------------------------------------


@given(st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_what_a_caption_says_is_read_back(seed):
    scene, style = Scene.draw(seed), Style.draw(seed)
    wanted = {
        "object": OBJECTS.index(scene.object), "background": BACKGROUNDS.index(scene.background),
        "style": STYLES.index(style.name), "sun": int(scene.sun),
    }  # fmt: skip
    assert captions.read_caption(sentence(scene, style)) == wanted
    varied = sentence(scene, style, seed)
    read = captions.read_caption(varied)
    assert read["object"] == wanted["object"]
    assert read["style"] == (wanted["style"] if "style" in varied else captions.UNSAID)


def test_a_caption_without_content_is_right_in_nothing_but_the_plain_background():
    nothing = {"object": captions.UNSAID, "background": BACKGROUNDS.index("plain"), "style": captions.UNSAID, "sun": 0}
    assert captions.read_caption("the style of of") == nothing


def test_the_protocol_counts_what_the_captioner_says(monkeypatch):
    drawn = sample(40)

    def describe_all(images):
        """Say the truth, but for the object of every fourth picture, of which it is not sure."""
        assert [image.tobytes() for image in images] == [one.image.tobytes() for one in drawn]
        for number, one in enumerate(drawn):
            noun = one.scene.object if number % 4 else OBJECTS[OBJECTS.index(one.scene.object) - 1]
            scene = Scene(noun, one.scene.background, one.scene.sun)
            yield Description(sentence(scene, one.style), 0.9 if number % 4 else 0.3)

    talker = SimpleNamespace(describe_all=lambda images: list(describe_all(images)))
    monkeypatch.setattr(captions.Captioner, "from_pretrained", lambda: talker)
    report = captions.run(Bench(quick=True))
    found = {line.name: line.estimate.value for line in report.lines}
    assert found == {
        "object right in the caption": pytest.approx(0.75), "background right in the caption": 1.0,
        "style right in the caption": 1.0, "sun right in the caption": 1.0, "all four right": pytest.approx(0.75),
        "mean confidence of captions right in all four": pytest.approx(0.9),
        "mean confidence of captions with a mistake": pytest.approx(0.3),
    }  # fmt: skip
    assert report.sheets["pictures"].height > 10 * 128


def test_the_protocol_is_skipped_with_a_sentence_where_the_captioner_is_missing(tmp_path, monkeypatch, capsys):
    misplace(monkeypatch, "captioner", tmp_path / "none")
    assert "captions" in harness.OFFLINE
    assert not harness.run("captions", Bench(quick=True), tmp_path)
    assert "captions: not run. The offline captioner is not at" in capsys.readouterr().out
