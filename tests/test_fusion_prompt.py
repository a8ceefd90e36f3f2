"""One prompt from many sources: order, length, weights, repetition, templates, and that no word is lost silently."""

import subprocess
import sys
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_words import tiny_tokenizer
from worlds import scenes_folder

import context_diffusion as cd
from context_diffusion.checkpoints import find_model
from context_diffusion.context.request import as_text
from context_diffusion.fusion import Description, fuse_prompts
from context_diffusion.fusion.phrases import join_phrases, meanings, split_phrases
from context_diffusion.fusion.prompt import NO_ROOM
from context_diffusion.fusion.template import token_counter
from context_diffusion.scenes import Scene, Style
from context_diffusion.scenes import caption as sentence

SCENE = "a boat among hills under the sun, watercolor style"


def fused(sources, *arguments, **options):
    """Fuse without the warning of what is cut, which a test of its own looks at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fuse_prompts(sources, *arguments, **{"max_tokens": 77} | options)


# --- phrases ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        (SCENE, ["a boat", "among hills", "under the sun", "watercolor style"]),
        ("in front of the house", ["in front of the house"]),
        ("a picture of a cat with 3.5 legs. Rain at dusk!", ["a picture of a cat", "with 3.5 legs", "Rain", "at dusk"]),
        ("a dog to look at", ["a dog to look at"]),
        (" , ; the of, \n", []),
    ],
)
def test_a_text_splits_where_a_piece_can_be_left_out(text, phrases):
    assert [phrase.text for phrase in split_phrases(text)] == phrases


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_captions_come_back_whole_from_their_phrases(seed):
    text = sentence(Scene.draw(seed), Style.draw(seed), seed)
    assert join_phrases(split_phrases(text)) == text


@given(st.text(max_size=200))
@settings(deadline=None)
def test_every_phrase_of_any_text_has_a_meaning(text):
    assert all(meanings(phrase.text) for phrase in split_phrases(text))


# --- order and weights -----------------------------------------------------------------------------------


def test_the_heavier_source_comes_first_and_equals_keep_their_order():
    texts = ["a boat", "a cat", "a house"]
    assert fused(texts).text == "a boat, a cat, a house"
    assert fused(texts, [1, 3, 2]).text == "a cat, a house, a boat"
    assert fused(texts, [1, 3, 0]).text == "a cat, a boat"


def test_confidence_counts_as_a_weight_does():
    unsure = [Description("a boat", 0.2), Description("a cat", 0.8)]
    assert fused(unsure).text == fused(["a boat", "a cat"], [0.2, 0.8]).text == "a cat, a boat"
    assert fused(unsure, [8, 2]).parts[0].share == pytest.approx(0.5)
    assert fused(["a cat", Description("[noise]", 0.0)]).text == "a cat"


def test_scaling_all_weights_changes_nothing():
    sources = [SCENE, "neon style, a cat on a roof", "rain"]
    assert fused(sources, [1, 2, 3], max_tokens=14) == fused(sources, [10, 20, 30], max_tokens=14)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(6, 40))
@settings(deadline=None)
def test_room_is_shared_in_proportion_to_the_weights(first, second, limit):
    texts = [", ".join(f"{letter}{number}" for number in range(60)) for letter in "ab"]
    result = fused(texts, [first, second], max_tokens=limit)
    counts = {part.description.text[0]: part.used.count(part.description.text[0]) for part in result.parts}
    share = first / (first + second)
    taken = sum(counts.values())
    assert taken == (limit - 1) // 2  # each phrase is a word and a comma, but for the last comma; start and end
    assert abs(counts["a"] - share * taken) <= 1


def test_a_talkative_source_does_not_silence_a_brief_one():
    speech = ", ".join(f"and then word{number} happened" for number in range(50))
    result = fused([speech, "neon style"], [2, 1], max_tokens=20)
    assert result.text.endswith("neon style")
    assert result.tokens <= 20


# --- length ----------------------------------------------------------------------------------------------

WORDS = ("a", "boat", "in", "the", "sun", ",", "neon", "style", "cat", "of", "with", "rainbow", "7", "é")
texts = st.lists(st.sampled_from(WORDS), max_size=40)


@given(st.lists(texts.map(" ".join), min_size=1, max_size=4), st.integers(4, 16))
@settings(max_examples=60, deadline=None)
def test_the_prompt_fits_and_every_phrase_has_a_fate(said, limit):
    if not any(split_phrases(text) for text in said):
        return
    tokenizer = tiny_tokenizer()
    try:
        result = fused(said, tokenizer=tokenizer, max_tokens=limit)
    except ValueError as error:
        assert f"fits into {limit} tokens" in str(error)
        return
    assert result.tokens == len(tokenizer(result.text)["input_ids"]) <= limit
    for part in result.parts:
        whole = [word for phrase in split_phrases(part.description.text) for word in phrase.text.split()]
        assert [word for phrase in part.phrases for word in phrase.text.split()] == whole
        assert part.used in result.text


def test_what_fits_is_whole_and_what_does_not_is_named():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fuse_prompts([SCENE], max_tokens=12).text == SCENE
    with pytest.warns(UserWarning, match="full at 11 tokens; this is cut: 'watercolor style'"):
        result = fuse_prompts([SCENE], max_tokens=11)
    assert result.text == "a boat among hills under the sun"
    assert result.cut == ["watercolor style"]
    assert "left out, no room: watercolor style" in result.table()


def test_a_source_of_one_long_phrase_is_shortened_to_a_word_with_meaning():
    result = fused(["big red round shiny thing of the past"], max_tokens=9)
    assert result.text == "big red round shiny thing"
    assert [phrase.fate for phrase in result.parts[0].phrases] == ["used", NO_ROOM]


def test_tokens_are_those_of_the_tokenizer_given_else_of_the_offline_model():
    tokenizer = tiny_tokenizer()
    count, limit = token_counter(tokenizer)
    assert limit == 16
    assert count("a zebra") == len(tokenizer("a zebra")["input_ids"]) > 4  # "zebra" falls to letters
    assert token_counter(tokenizer, 500)[1] == 16
    assert token_counter(None, 20)[0]("a zebra, big") == 6
    offline, limit = token_counter()
    assert (offline("a boat among hills, neon style"), limit) == (9, 32)


# --- repetition ------------------------------------------------------------------------------------------


def test_nothing_is_said_twice_and_the_more_important_source_says_it():
    result = fused([SCENE, "The Boat, under the sun, a cat on a boat"])
    assert result.text == SCENE + ", a cat"
    fates = [phrase.fate for phrase in result.parts[1].phrases]
    assert fates == ["said before", "said before", "used", "said before"]
    assert fused(["a boat", "no boat"]).text == "a boat, no boat"


def test_of_two_backgrounds_palettes_or_styles_the_more_important_source_keeps_its_own():
    weather = Description("by the sea, cool colors", 1.0, "weather")
    drawn = "a boat among hills, neon style, warm colors"
    assert fused([drawn, weather], [2, 1]).text == drawn
    assert fused([drawn, weather], [1, 2]).text == "by the sea, cool colors, a boat, neon style"
    assert [phrase.fate for phrase in fused([drawn, weather]).parts[1].phrases] == [
        "another background", "another palette",
    ]  # fmt: skip


# --- the grammar of the offline world --------------------------------------------------------------------


@given(st.integers(0, 10**6), st.permutations(range(5)))
@settings(max_examples=30, deadline=None)
def test_in_sentence_order_the_phrases_of_a_caption_make_that_caption_whoever_says_them(seed, places):
    whole = sentence(Scene.draw(seed), Style.draw(seed)) + f", {Style.draw(seed).family} colors"
    phrases = [phrase.text for phrase in split_phrases(whole)]
    shuffled = [phrases[place] for place in places if place < len(phrases)]
    missing = [phrase for phrase in phrases if phrase not in shuffled]
    assert fused([*shuffled, *missing], order="sentence").text == whole


def test_the_offline_model_gets_sentences_and_others_the_important_first():
    said = ["by the sea, cool colors", "a boat, neon style"]
    assert fuse_prompts(said, [2, 1]).text == "a boat by the sea, neon style, cool colors"
    assert fuse_prompts(said, [2, 1], order="importance").text == "by the sea, cool colors, a boat, neon style"
    assert fused(said, [2, 1]).text == "by the sea, cool colors, a boat, neon style"
    assert (
        fuse_prompts([*said, "a cat with wings"]).text == "a boat, a cat with wings by the sea, neon style, cool colors"
    )
    pipe = SimpleNamespace(tokenizer=tiny_tokenizer())
    for name, text in (("tiny-scenes", "a boat by the sea"), ("sd15", "by the sea, a boat")):
        assert as_text(["by the sea", "a boat"], pipe, find_model(name)) == text


# --- templates -------------------------------------------------------------------------------------------


def test_a_template_places_sources_by_number_and_the_others_by_weight():
    said = ["a boat", "rain", "neon style"]
    assert fused(said, [1, 2, 3], "a photo of {0}: {prompt}").text == "a photo of a boat: neon style, rain"
    assert fused(said, template="{2}: {0} and {1}").text == "neon style: a boat and rain"
    assert fused(["a boat", Description("", 0.0)], template="{0}, {1}, oil").text == "a boat, oil"
    assert fused(["a boat, oil painting"], template="{prompt}, oil painting").text == "a boat, oil painting"
    assert fused(["{0} {prompt} {{x}}"]).text == "{0} {prompt} {{x}}"


def test_the_template_counts_towards_the_length():
    result = fused([SCENE], template="an oil painting of {prompt}", max_tokens=13)
    assert result.text == "an oil painting of a boat among hills under the sun"
    with pytest.raises(ValueError, match="No phrase fits into 6 tokens next to the template"):
        fuse_prompts(["a boat"], template="an oil painting of {prompt}", max_tokens=6)


# --- bad input -------------------------------------------------------------------------------------------

BAD = {
    "none": ({"sources": []}, ValueError, "at least one source"),
    "silence": ({"sources": ["", Description("...", 1.0, "speech")]}, ValueError, "says anything: text, speech"),
    "no source": ({"sources": ["a", 7]}, TypeError, "source 1 is 7"),
    "class": ({"sources": [Description]}, TypeError, "source 0 is the class Description"),
    "weights": ({"sources": ["a cat", "b"], "weights": [1]}, ValueError, r"2 source\(s\), 1 weight"),
    "negative": ({"sources": ["a cat", "b"], "weights": [1, -1]}, ValueError, "not negative"),
    "unsure": ({"sources": [Description("a cat", 0.0)]}, ValueError, "weight times confidence is 0"),
    "brace": ({"sources": ["a cat"], "template": "{prompt"}, ValueError, "braces in pairs"),
    "field": ({"sources": ["a cat"], "template": "{image}"}, ValueError, "and the numbers of sources"),
    "number": ({"sources": ["a cat"], "template": "{1}"}, ValueError, "numbers of sources"),
    "zeros": ({"sources": ["a cat"], "template": "{00}"}, ValueError, "numbers of sources"),
    "format": ({"sources": ["a cat"], "template": "{0!r:>99999999}"}, ValueError, "nothing else in the braces"),
    "attribute": ({"sources": ["a cat"], "template": "{0.__class__}"}, ValueError, "numbers of sources"),
    "homeless": ({"sources": ["a cat", "b"], "template": "{0}"}, ValueError, "no place for source 1"),
    "order": ({"sources": ["a cat"], "order": "random"}, ValueError, "order is 'importance' or 'sentence'"),
    "length": ({"sources": ["a cat"], "max_tokens": 2}, ValueError, "max_tokens is a whole number of at least 3"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_get_one_sentence(name):
    arguments, error, sentence = BAD[name]
    with pytest.raises(error, match=sentence):
        fuse_prompts(**arguments)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [(1.5, "from 0"), (-0.1, "from 0"), (float("nan"), "confidence is a finite"), (float("inf"), "is a finite number")],
)
def test_a_confidence_is_a_probability(value, sentence):
    with pytest.raises(ValueError, match=sentence):
        Description("a boat", value)


@dataclass
class Recording:
    """A source of somebody else's making."""

    said: object
    asked: int = 0

    def describe(self):
        self.asked += 1
        return self.said


def test_any_object_that_describes_itself_is_a_source_and_is_asked_once():
    source = Recording(Description("a cat purrs", 0.5, "recording", ("2 % of the samples are clipped",)))
    result = fused(["a boat", source])
    assert result.text == "a boat, a cat purrs"
    assert source.asked == 1
    assert "note: 2 % of the samples are clipped" in result.table()
    with pytest.raises(TypeError, match="source 0 returned a str"):
        fuse_prompts([Recording("a cat")])


# --- in the call -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return cd.ContextDiffusion.from_pretrained(scenes_folder(), device="cpu")


def test_a_list_of_sources_draws_what_their_fused_text_draws(model):
    options = {"num_inference_steps": 2, "seed": 5, "progress": False}
    sources = ["a red house", Recording(Description("a cat", 0.5))]
    drawn = model(prompt=sources, **options)
    assert drawn.info["prompt"] == "a red house, a cat"
    assert drawn.tobytes() == model(prompt="a red house, a cat", **options).tobytes()
    assert drawn.tobytes() != model(prompt="a cat, a red house", **options).tobytes()
    weighted = fused(sources, [1, 9], tokenizer=model.pipeline.tokenizer)
    assert model(prompt=weighted, **options).info["prompt"] == "a cat, a red house"
    assert model(prompt=sources[1], **options).info["prompt"] == "a cat"
    with pytest.raises(ValueError, match="at least one of query_image, context_images and prompt"):
        model(prompt=[], **options)


def test_the_call_cuts_at_the_length_of_its_own_text_encoder(model):
    with pytest.warns(UserWarning, match="full at 16 tokens; this is cut: 'a tree'"):
        drawn = model(
            prompt=["a boat, a cat, a cup, a fish, a tree", "a rocket"], num_inference_steps=1, seed=0, progress=False
        )
    assert drawn.info["prompt"] == "a boat, a cat, a cup, a fish, a rocket"


def test_fusing_texts_loads_no_heavy_library():
    code = (
        "import sys, context_diffusion as cd; cd.fuse_prompts(['a boat', 'rain'], max_tokens=9); "
        "assert not {'torch', 'transformers', 'httpx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
