import copy
import io
import os
import pickle

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from context_diffusion.files import written_whole
from context_diffusion.images import (
    FORMATS,
    MIN_STD,
    NormalizedImage,
    denormalize,
    dynamic_normalization,
    image_grid,
    load_image,
    load_image_as_tensor,
    resize,
    save_image,
    to_pil,
    to_tensor,
)

small = settings(max_examples=25, deadline=None)


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    """A picture without any symmetry: red grows to the right, green downwards, blue is constant."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 60)], -1).astype(np.uint8))


# --- dynamic normalization -------------------------------------------------------------------------------


def test_normalized_image_has_mean_0_and_deviation_1_in_each_channel():
    image = load_image_as_tensor(Image.effect_noise((300, 200), 90).convert("RGB"))
    assert image.shape == (3, 224, 224)
    torch.testing.assert_close(image.mean((1, 2)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(image.std((1, 2), correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_statistics_are_those_of_numpy():
    picture = gradient(224, 224)
    pixels = np.asarray(picture, dtype=np.float64) / 255
    expected = np.concatenate([pixels.mean((0, 1)), pixels.std((0, 1))])
    np.testing.assert_allclose(load_image_as_tensor(picture).statistics, expected, atol=1e-5)


@small
@given(hnp.arrays(np.float32, (3, 5, 7), elements=st.floats(0, 1, width=32)))
def test_denormalize_undoes_normalization_of_any_image(pixels):
    images = torch.from_numpy(pixels)
    values, statistics = dynamic_normalization(images)
    assert torch.isfinite(values).all()
    torch.testing.assert_close(denormalize(values, statistics), images, atol=2e-6, rtol=0)


@pytest.mark.parametrize("per", ["channel", "image"])
def test_a_batch_is_normalized_image_by_image(per):
    images = torch.rand(2, 4, 3, 6, 6)
    values, statistics = dynamic_normalization(images, per)
    alone, numbers = dynamic_normalization(images[1, 2], per)
    torch.testing.assert_close(values[1, 2], alone)
    torch.testing.assert_close(statistics[1, 2], numbers)


def test_statistics_of_the_whole_image_keep_the_balance_of_colours():
    image = torch.rand(3, 8, 8) * torch.tensor([1.0, 0.5, 0.2])[:, None, None]
    values, statistics = dynamic_normalization(image, per="image")
    assert statistics[:3].unique().numel() == statistics[3:].unique().numel() == 1
    torch.testing.assert_close(values.std(correction=0), torch.tensor(1.0))
    assert values[0].mean() > values[1].mean() > values[2].mean()


@pytest.mark.parametrize("grey", [0, 1, 128, 255])
def test_a_constant_image_becomes_zeros_and_comes_back(grey):
    picture = Image.new("RGB", (9, 9), (grey, grey, 255 - grey))
    tensor = load_image_as_tensor(picture)
    assert tensor.abs().max() < 1e-3
    assert to_pil(denormalize(tensor)).getpixel((100, 100)) == (grey, grey, 255 - grey)


def test_less_than_one_grey_level_of_noise_is_not_blown_up():
    values, _ = dynamic_normalization(0.5 + 1e-4 * torch.randn(3, 16, 16))
    assert values.abs().max() < 1e-3 / MIN_STD


def test_normalization_forgets_brightness_and_contrast_and_the_statistics_keep_them():
    image = torch.rand(3, 16, 16) * 0.4 + 0.3
    first, second = dynamic_normalization(image), dynamic_normalization(0.5 * image + 0.1)
    torch.testing.assert_close(first[0], second[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(second[1][:3], 0.5 * first[1][:3] + 0.1)
    torch.testing.assert_close(second[1][3:], 0.5 * first[1][3:])


def test_other_statistics_give_the_image_another_palette():
    values, _ = dynamic_normalization(torch.rand(3, 32, 32))
    wanted = torch.tensor([0.2, 0.5, 0.7, 0.1, 0.05, 0.2])
    moved = denormalize(values, wanted)
    torch.testing.assert_close(dynamic_normalization(moved)[1], wanted, atol=1e-4, rtol=0)


def test_arithmetic_drops_the_statistics_and_denormalize_says_so():
    tensor = load_image_as_tensor(gradient())
    assert type(tensor + 1) is torch.Tensor
    with pytest.raises(ValueError, match="needs the statistics"):
        denormalize(tensor * 2)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_keep_the_statistics(again):
    tensor = load_image_as_tensor(gradient())
    other = again(tensor)
    assert isinstance(other, NormalizedImage)
    assert torch.equal(other.statistics, tensor.statistics) and torch.equal(other, tensor)
    assert other.data_ptr() != tensor.data_ptr()


def test_a_normalized_image_is_an_image():
    picture = gradient(224, 224)
    difference = np.asarray(load_image(load_image_as_tensor(picture)), int) - np.asarray(picture, int)
    assert np.abs(difference).max() <= 1


def test_normalization_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="NaN or infinity"):
        dynamic_normalization(torch.full((3, 4, 4), float("nan")))


# --- reading ---------------------------------------------------------------------------------------------


def written(picture: Image.Image, path, **options):
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV", "RGBA", "LA", "RGBX", "PA"])
def test_every_mode_becomes_rgb_of_the_same_size(mode):
    picture = load_image(gradient().convert("L" if mode == "PA" else "RGB").convert(mode))
    assert picture.mode == "RGB" and picture.size == (40, 30)


def test_transparency_shows_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert load_image(clear).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(half).getpixel((0, 0)) == pytest.approx((255, 127, 127), abs=1)
    assert load_image(np.asarray(clear)).getpixel((0, 0)) == (255, 255, 255)


def test_transparent_palette_entry_shows_white(tmp_path):
    palette = gradient().quantize(8)
    path = written(palette, tmp_path / "p.gif", transparency=palette.getpixel((0, 0)))
    assert load_image(path).getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright"
    path = written(gradient(), tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = load_image(path)
    assert upright.size == (30, 40)
    expected = np.rot90(np.asarray(gradient()), -1).astype(int)
    assert np.abs(np.asarray(upright).astype(int) - expected).mean() < 4


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    expected = np.round(ramp / 257).astype(int)
    for source in (written(Image.fromarray(ramp), tmp_path / "deep.png"), ramp):
        assert np.abs(np.asarray(load_image(source))[..., 0].astype(int) - expected).max() <= 1


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert load_image(tmp_path / "a.webp").getpixel((0, 0)) == (255, 0, 0)


@small
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))),
    st.sampled_from(["float", "float64", "int64", "tensor", "batch", "pil"]),
)
def test_every_form_of_the_same_pixels_reads_the_same(pixels, form):
    source = {
        "float": lambda: pixels.astype(np.float32) / 255,
        "float64": lambda: pixels / 255,
        "int64": lambda: pixels.astype(np.int64),
        "tensor": lambda: torch.from_numpy(pixels).permute(2, 0, 1),
        "batch": lambda: (torch.from_numpy(pixels).permute(2, 0, 1) / 255)[None],
        "pil": lambda: Image.fromarray(pixels),
    }[form]()
    np.testing.assert_array_equal(np.asarray(load_image(source)), pixels)


@small
@given(hnp.arrays(np.uint8, (6, 5, 3)))
def test_tensor_and_back_is_exact(pixels):
    np.testing.assert_array_equal(np.asarray(to_pil(to_tensor(pixels))), pixels)


def test_reading_does_not_change_or_share_the_callers_image():
    picture = gradient()
    load_image(picture).putpixel((0, 0), (1, 2, 3))
    assert picture.getpixel((0, 0)) == gradient().getpixel((0, 0))


def truncated(path):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue()[:700])


BAD_FILES = {
    "missing.png": (lambda path: None, FileNotFoundError, "no image file"),
    "folder": (lambda path: path.mkdir(), ValueError, "is a folder"),
    "empty.png": (lambda path: path.touch(), ValueError, "0 bytes"),
    "text.png": (lambda path: path.write_text("hello"), ValueError, "no image format"),
    "cut.png": (truncated, ValueError, "damaged or truncated"),
    "wide.png": (lambda path: Image.new("1", (20000, 10000)).save(path), ValueError, "limit of 100,000,000"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_get_one_sentence(tmp_path, name):
    make, error, sentence = BAD_FILES[name]
    make(tmp_path / name)
    with pytest.raises(error, match=sentence) as caught:
        load_image(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("source", "error", "sentence"),
    [
        (np.zeros((0, 4, 3), np.uint8), ValueError, "no pixels"),
        (np.zeros((5, 4, 7), np.uint8), ValueError, "1, 3 or 4 channels"),
        (np.zeros(5, np.uint8), ValueError, "1, 3 or 4 channels"),
        (np.full((4, 4), np.nan), ValueError, "NaN"),
        (np.full((4, 4), 200.0), ValueError, "divide it by 255"),
        (np.full((4, 4), -1.0), ValueError, r"\(x \+ 1\) / 2"),
        (np.full((4, 4), 300), ValueError, r"0\.\.255"),
        (np.full((4, 4), "a"), TypeError, "integers or floats"),
        (torch.full((3, 4, 4), float("inf")), ValueError, "NaN or infinity"),
        ("https://example.org/a.png", ValueError, "not from the network"),
        (["a.png", "b.png"], TypeError, "context_images"),
        (None, TypeError, "NoneType"),
    ],
)
def test_bad_values_get_one_sentence(source, error, sentence):
    with pytest.raises(error, match=sentence):
        load_image(source)


def test_pixel_limit_is_an_argument():
    with pytest.raises(ValueError, match="limit of 100;"):
        load_image(Image.new("L", (11, 10)), max_pixels=100)


# --- sizes, grids, files ---------------------------------------------------------------------------------


def test_crop_keeps_the_centre_and_proportions():
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40] = 255
    assert np.asarray(resize(picture, 20, "crop")).min() > 200
    assert np.asarray(resize(picture, 20, "stretch"))[:, 0].max() < 60
    padded = np.asarray(resize(picture, 60, "pad"))
    assert padded[0].min() == 255 and padded[30, 0].max() == 0


@small
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 40), st.sampled_from(["crop", "stretch", "pad"]))
def test_resize_gives_the_size_asked_for(width, height, size, fit):
    assert resize(Image.new("RGB", (width, height)), (size, size + 3), fit).size == (size, size + 3)


def test_grid_places_images_row_by_row():
    colours = ["red", "lime", "blue", "black", "white"]
    sheet = image_grid([Image.new("RGB", (6, 4), colour) for colour in colours], columns=2, gap=1)
    assert sheet.size == (13, 14)
    assert [sheet.getpixel((7 * (i % 2), 5 * (i // 2))) for i in range(3)] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
    ]
    assert [sheet.getpixel(at) for at in ((6, 0), (0, 4), (12, 13))] == [(255, 255, 255)] * 3  # gaps, the empty cell
    small = image_grid([Image.new("RGB", (2, 2), colour) for colour in colours], columns=3, gap=0, background="navy")
    assert small.size == (6, 4) and small.getpixel((5, 3)) == (0, 0, 128)
    with pytest.raises(ValueError, match="at least one image"):
        image_grid([])


def test_save_is_all_or_nothing(tmp_path, monkeypatch):
    path = save_image(gradient(), tmp_path / "new" / "a.png")
    assert load_image(path).getpixel((39, 0)) == (255, 0, 60)

    def breaks(self, file, **options):
        os.truncate(file, 0)
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", breaks)
    with pytest.raises(KeyboardInterrupt):
        save_image(Image.new("RGB", (4, 4)), path)
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]
    assert load_image(path).size == (40, 30)


def test_save_wants_a_known_suffix(tmp_path):
    with pytest.raises(ValueError, match="names no image format"):
        save_image(gradient(), tmp_path / "picture.jpgg")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "note.txt"
    with written_whole(target) as temporary:
        temporary.write_text("first")
        assert temporary.suffix == ".txt" and not target.exists()
    with pytest.raises(KeyboardInterrupt), written_whole(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "first"
    assert list(target.parent.iterdir()) == [target]


def test_every_format_that_is_offered_is_written_in_colour_and_in_size(tmp_path):
    written = {}
    for suffix, kind in Image.registered_extensions().items():
        try:
            path = save_image(gradient(), tmp_path / f"a{suffix}")
        except ValueError as error:
            assert kind not in FORMATS and "names no image format that can be written" in str(error)
        else:
            written[kind] = path
    assert set(written) == FORMATS
    for kind in FORMATS - {"PDF", "EPS"}:  # which are not read back
        assert load_image(written[kind]).size == (40, 30), kind
    with pytest.raises(ValueError, match="names no image format that can be written"):
        save_image(gradient(), tmp_path / "a.psd")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: resize(gradient(), 0), "a side of size"),
        (lambda: resize.__wrapped__(gradient(), (4, 5, 6)), "width and height"),
        (lambda: resize(gradient(), (20_000, 20_000)), "width times height"),
        (lambda: resize.__wrapped__(gradient(), 8, fit="cropp"), "did you mean 'crop'"),
        (lambda: image_grid([gradient()], columns=0), "columns"),
        (lambda: image_grid([gradient()], gap=10**9), "gap"),
        (lambda: image_grid([gradient()], columns=90_000), "pixels of the grid"),
        (lambda: image_grid([gradient()], background="blueish"), "A colour is"),
        (lambda: save_image(gradient(), "a.jpg", quality="best"), "a.jpg cannot be encoded"),
        (lambda: save_image(Image.new("RGB", (20_000, 1)), "a.webp"), "a.webp cannot be encoded"),
        (lambda: save_image("missing.png", "a.png"), "no image file"),
        (lambda: dynamic_normalization(torch.zeros(2, 3, 0, 0)), "needs pixels"),
        (lambda: denormalize(torch.zeros(3, 4, 4)), "needs the statistics"),
    ],
)
def test_what_cannot_be_made_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, call, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        call()
    assert not list(tmp_path.iterdir())


def test_a_grid_takes_one_image_a_batch_or_any_iterable():
    batch = torch.rand(3, 3, 4, 5)
    expected = np.asarray(image_grid(list(batch)))
    for images in (batch, iter(batch), tuple(batch)):
        np.testing.assert_array_equal(np.asarray(image_grid(images)), expected)
    assert image_grid(gradient()).size == (40, 30)


@pytest.mark.parametrize("shape", [(1, 30_000), (30_000, 1)])
def test_the_narrowest_picture_is_read_resized_and_framed(shape):
    strip = np.zeros((*shape, 3), np.uint8)
    assert load_image(strip).size == shape[::-1]
    for fit in ("crop", "stretch", "pad"):
        assert resize(strip, 32, fit).size == (32, 32)


def test_the_encoder_that_never_ends_on_a_full_disk_does_not_write_to_one(tmp_path, monkeypatch):
    seen = []
    save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda self, file, **options: seen.append(file) or save(self, file))
    for name in ("a.jp2", "a.j2k"):
        save_image(gradient(), tmp_path / name)
    assert all(isinstance(file, io.BytesIO) for file in seen)
    assert (tmp_path / "a.jp2").read_bytes()[4:8] == b"jP  " and (tmp_path / "a.j2k").read_bytes()[
        :4
    ] == b"\xff\x4f\xff\x51"
