import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_tokenizer
from transformers import CLIPModel, SiglipConfig, SiglipModel, ViTModel
from worlds import LAYERS, scenes_folder

from context_diffusion.checks import normalized_weights
from context_diffusion.encoders import average_embeddings, load_encoder, vision_inputs
from context_diffusion.images import dynamic_normalization, load_image_as_tensor, resize, to_tensor

NOISE = [Image.effect_noise((64, 64), spread).convert("RGB") for spread in (30, 90)]
RAMP = Image.linear_gradient("L").resize((64, 64)).convert("RGB")


def by_two(image: Image.Image) -> torch.Tensor:
    """The mean of every 2x2 pixels, (1, 3, h / 2, w / 2), by NumPy."""
    pixels = np.asarray(image, np.float32) / 255
    return torch.from_numpy(pixels.reshape(32, 2, 32, 2, 3).mean((1, 3))).permute(2, 0, 1)[None]


def test_clip_vectors_are_those_of_the_network_on_dynamically_normalized_pixels():
    encoder = load_encoder("clip", scenes_folder())
    network = CLIPModel.from_pretrained(scenes_folder() / "clip")
    with torch.no_grad():
        pixels, _ = dynamic_normalization(by_two(RAMP))
        expected = network.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(encoder.encode_images([RAMP]), expected, atol=1e-4, rtol=1e-4)


def test_clip_text_is_padded_as_the_text_encoder_was_trained():
    encoder = load_encoder("clip", scenes_folder())
    tokenizer, network = tiny_tokenizer(), CLIPModel.from_pretrained(scenes_folder() / "clip")
    tokens = tokenizer("a red house", padding="max_length", return_tensors="pt")
    with torch.no_grad():
        expected = network.get_text_features(**tokens).pooler_output  # with its mask, which changes nothing
    torch.testing.assert_close(encoder.encode_text("a red house"), expected)
    with pytest.warns(UserWarning, match="this is cut"):
        assert encoder.encode_text(["a cat " * 40, "a boat"]).shape == expected.repeat(2, 1).shape


def test_text_beyond_the_encoders_length_is_cut_with_a_warning():
    encoder = load_encoder("clip", scenes_folder())
    length = encoder.network.config.text_config.max_position_embeddings
    full = "cat " * (length - 2)
    with pytest.warns(UserWarning, match=f"sentence is longer than the text encoder's {length} tokens; .*'red boat'"):
        cut = encoder.encode_text([full + "red boat"])
    torch.testing.assert_close(cut, encoder.encode_text(full))


def test_dino_vector_is_the_class_token():
    encoder = load_encoder("dino", scenes_folder())
    network = ViTModel.from_pretrained(scenes_folder() / "dino", add_pooling_layer=False)
    with torch.no_grad():
        expected = network(pixel_values=2 * by_two(RAMP) - 1).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder.encode_images([RAMP]), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(TypeError, match="pictures only"):
        encoder.encode_text("a cat")


def test_every_form_of_an_image_is_encoded_and_a_batch_is_its_images():
    encoder = load_encoder("clip", scenes_folder())
    together = encoder.encode_images([NOISE[0], np.asarray(NOISE[1]), load_image_as_tensor(RAMP, 64)])
    alone = torch.cat([encoder.encode_images([image]) for image in (*NOISE, RAMP)])
    torch.testing.assert_close(together, alone, atol=0.05, rtol=0.05)  # the tensor went through 8 bits
    torch.testing.assert_close(together[:2], alone[:2], atol=1e-5, rtol=1e-4)


def test_fixed_numbers_in_the_folder_are_used(tmp_path):
    folder = tmp_path / "vit"
    ViTModel.from_pretrained(scenes_folder() / "dino").save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}')
    small = RAMP.resize((32, 32))
    pixels = torch.from_numpy(np.asarray(small, np.float32) / 255).permute(2, 0, 1)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.2, 0.1])
    encoder = load_encoder(str(folder), scenes_folder())
    torch.testing.assert_close(encoder.preprocess(small), (pixels - mean[:, None, None]) / std[:, None, None])
    assert encoder.encode_images([small]).shape == (1, LAYERS["hidden_size"])


def test_a_siglip_folder_encodes_text_and_pictures_in_one_space(tmp_path):
    text = {**LAYERS, "vocab_size": len(tiny_tokenizer()), "max_position_embeddings": 16}
    config = SiglipConfig(text_config=text, vision_config={**LAYERS, "image_size": 32, "patch_size": 8})
    network = SiglipModel(config).eval()
    network.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), scenes_folder())
    ids = tiny_tokenizer()(["a cat"], padding="max_length", max_length=16, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = network.get_text_features(input_ids=ids).pooler_output
    torch.testing.assert_close(encoder.encode_text("a cat"), expected, atol=1e-5, rtol=1e-4)
    assert encoder.encode_images(NOISE).shape == (2, expected.shape[1])


def test_unknown_and_absent_encoders_get_one_sentence():
    with pytest.raises(ValueError, match="clip, siglip, dino or dinov2"):
        load_encoder("resnet", scenes_folder())
    with pytest.raises(FileNotFoundError, match="hf download facebook/dinov2-base"):
        load_encoder("dinov2", scenes_folder())


def test_vision_inputs_see_the_same_picture_however_bright_and_large():
    images = torch.rand(2, 3, 16, 16).repeat_interleave(4, -1).repeat_interleave(4, -2)
    values, statistics = vision_inputs(images, 32)
    brighter, others = vision_inputs(0.5 * images + 0.25, 32)
    torch.testing.assert_close(values, brighter, atol=1e-4, rtol=0)
    torch.testing.assert_close(others[:, 3:], 0.5 * statistics[:, 3:])
    torch.testing.assert_close(vision_inputs(images, 16)[1], statistics)


# --- averaging -------------------------------------------------------------------------------------------

positive = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6)


@given(positive)
@settings(deadline=None)
def test_the_average_is_numpys(weights):
    embeddings = torch.randn(len(weights), 4, 3, dtype=torch.float64)
    expected = np.average(embeddings.numpy(), axis=0, weights=weights)
    np.testing.assert_allclose(average_embeddings(embeddings, weights), expected, atol=1e-12)


@given(positive, st.sampled_from([1e-300, 1e-3, 7.0, 1e300]))
@settings(deadline=None)
def test_only_the_ratios_of_weights_count(weights, factor):
    scaled = normalized_weights([weight * factor for weight in weights], len(weights))
    assert math.isclose(sum(scaled), 1)
    np.testing.assert_allclose(scaled, normalized_weights(weights, len(weights)), rtol=1e-6)


def test_equal_weights_are_the_mean_and_a_zero_weight_is_absence():
    embeddings = torch.randn(3, 5)
    torch.testing.assert_close(average_embeddings(embeddings), embeddings.mean(0))
    torch.testing.assert_close(average_embeddings(embeddings, [1, 0, 1]), embeddings[::2].mean(0))


@pytest.mark.parametrize("weights", [[-1, 2], [0, 0], [float("nan"), 1], [float("inf"), 1]])
def test_invalid_weights_are_refused(weights):
    with pytest.raises(ValueError, match="finite, not negative, and not all zero"):
        average_embeddings(torch.randn(2, 3), weights)


def test_the_number_of_weights_must_fit():
    with pytest.raises(ValueError, match=r"2 image\(s\), 3 weight\(s\)"):
        average_embeddings(torch.randn(2, 3), [1, 1, 1])
    with pytest.raises(ValueError, match="at least one picture"):
        average_embeddings(torch.randn(0, 3))


def test_sampling_shows_clip_what_training_showed_it():
    from context_diffusion.scenes import context_group
    from experiments.training.clip import normalize, shrink

    drawn = context_group(seed=1_000_000, size=3)
    trained = normalize(torch.from_numpy(shrink(np.stack([scene.pixels for scene in drawn]))))
    sampled = vision_inputs(torch.stack([to_tensor(resize(scene.image, 128)) for scene in drawn]), 64)
    torch.testing.assert_close(sampled[0], trained[0], atol=0.05, rtol=0)  # training rounded to 8 bits in between
    torch.testing.assert_close(sampled[1], trained[1], atol=2e-3, rtol=0)
