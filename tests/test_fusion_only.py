"""Some of what a source says: only phrases of the kinds asked for, each as it was."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import context_diffusion as cd
from context_diffusion.fusion import Description
from context_diffusion.fusion.phrases import split_phrases
from context_diffusion.scenes import BACKGROUNDS, OBJECTS, Scene, Style, caption

KINDS = ("background", "palette", "style", "sun")


@given(st.sampled_from(OBJECTS), st.sampled_from(BACKGROUNDS), st.booleans(), st.integers(0, 99))
@settings(deadline=None)
def test_kinds_and_the_rest_make_up_the_whole(thing, place, sun, seed):
    said = f"{caption(Scene(thing, place, sun), Style.draw(seed))}, warm colors"
    parts = [phrase.text for kind in KINDS for phrase in split_phrases(cd.Only(said, kind).describe().text)]
    whole = [phrase.text for phrase in split_phrases(said)]
    assert sorted(parts) == sorted(whole[1:])  # all but the object
    assert [phrase.text for phrase in split_phrases(cd.Only(said, KINDS).describe().text)] == whole[1:]


def test_confidence_and_notes_are_the_sources_and_its_name_says_what_was_taken():
    said = cd.Only(Description("a cat, neon style", 0.5, "caption of a.png", ("dark",)), "style").describe()
    assert said == Description("neon style", 0.5, "style in caption of a.png", ("dark",))


def test_a_picture_lends_its_style_and_not_its_object():
    picture = Description("a cat among hills under the sun, neon style", 0.9, "caption of a picture")
    fused = cd.fuse_prompts(["a boat by the sea", cd.Only(picture, "style")])
    assert fused.text == "a boat by the sea, neon style"


def test_where_nothing_is_of_the_kind_nothing_is_said():
    assert cd.Only("a cat", "style").describe().text == ""
    assert cd.fuse_prompts([cd.Only("a cat", "style"), "a boat"]).text == "a boat"
    with pytest.raises(ValueError, match="None of the sources says anything: style in text"):
        cd.fuse_prompts(cd.Only("a cat", "style"))


@pytest.mark.parametrize("kind", ["object", ("style", "mood"), ()])
def test_an_unknown_kind_is_refused(kind):
    with pytest.raises(ValueError, match="A kind is one of background, palette, style, sun; got"):
        cd.Only("a cat", kind)
