"""What is read is a right picture, whatever its colours, depth and layout, or one sentence, whatever is wrong."""

import io
import os
import struct
import warnings
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from context_diffusion.images import load_image, save_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS).resize((48, 36))
quick = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# --- colour profiles -------------------------------------------------------------------------------------

WHITE = (0.9642, 1.0, 0.8249)  # D50
PRIMARIES = {  # XYZ of red, green and blue, adapted to D50
    "display p3": [(0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841)],
    "adobe rgb": [(0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)],
}


def fixed(*numbers: float) -> bytes:
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def profile(primaries, gamma: float, space: bytes = b"RGB ") -> bytes:
    """An ICC profile of version 2 with a matrix (or none, for greys) and one exponent."""
    curve = b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(gamma * 256))
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {b"desc": text, b"wtpt": b"XYZ " + bytes(4) + fixed(*WHITE), b"cprt": b"text" + bytes(4) + b"none\0"}
    tags |= {b"kTRC": curve} if space == b"GRAY" else {}
    for name, xyz in zip(b"rgb", primaries, strict=bool(primaries)):
        tags |= {b"%cXYZ" % name: b"XYZ " + bytes(4) + fixed(*xyz), b"%cTRC" % name: curve}
    table, body = b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", 132 + len(table + body), b"none", 0x02100000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + fixed(*WHITE) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


WIDE = {name: profile(primaries, 2.2) for name, primaries in PRIMARIES.items()}
GREY = profile([], 1.2, b"GRAY")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def independently(picture: Image.Image, icc: bytes) -> np.ndarray:
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    return np.asarray(ImageCms.profileToProfile(picture, source, SRGB, outputMode="RGB"), dtype=int)


def difference(image, expected) -> int:
    return int(np.abs(np.asarray(image, dtype=int) - expected).max())


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("form", ["png", "tiff", "webp", "jpg", "pil"])
def test_colours_are_converted_to_srgb_by_their_profile(tmp_path, name, form):
    source, options = PICTURE.copy(), {"webp": {"lossless": True, "exact": True}, "jpg": {"quality": 100}}
    source.info["icc_profile"] = WIDE[name]
    if form != "pil":
        PICTURE.save(tmp_path / f"a.{form}", icc_profile=WIDE[name], **options.get(form, {}))
        source = tmp_path / f"a.{form}"
    decoded = PICTURE if form == "pil" else Image.open(source).convert("RGB")
    expected = independently(decoded, WIDE[name])
    assert difference(decoded, expected) > 30
    assert difference(load_image(source), expected) == 0


def test_greys_cmyk_palettes_and_transparency_are_converted_too(tmp_path):
    grey, cmyk = PICTURE.convert("L"), PICTURE.convert("CMYK")
    for picture, icc in ((grey, GREY), (cmyk, cmyk_profile())):
        picture.info["icc_profile"] = icc
        assert difference(load_image(picture), independently(picture, icc)) == 0
    palette = PICTURE.quantize(16)
    palette.info["icc_profile"] = WIDE["display p3"]
    assert difference(load_image(palette), independently(palette.convert("RGB"), WIDE["display p3"])) == 0
    clear = PICTURE.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(PICTURE.size))
    alpha = np.asarray(clear.getchannel("A"), dtype=float)[..., None] / 255
    over_white = alpha * independently(PICTURE, WIDE["adobe rgb"]) + (1 - alpha) * 255
    clear.save(tmp_path / "a.png", icc_profile=WIDE["adobe rgb"])
    assert difference(load_image(tmp_path / "a.png"), over_white) <= 1


def cmyk_profile() -> bytes:
    """A printer's profile with a table of two levels for each ink: black takes all light, the others their own."""
    inks = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(-1, 4)
    light = np.prod(1 - inks[:, :3] * 0.9, axis=1) * (1 - inks[:, 3] * 0.95)
    lab = np.stack([100 * light, 60 * (inks[:, 1] - inks[:, 0]), 60 * (inks[:, 2] - inks[:, 1] * inks[:, 0])], -1)
    table = np.clip(np.round(lab / [100, 255, 255] * 255 + [0, 128, 128]), 0, 255).astype(np.uint8).tobytes()
    straight = bytes(range(256))
    identity = fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + straight * 4 + table + straight * 3
    whole = profile([], 1.0, b"CMYK")
    count = struct.unpack_from(">I", whole, 128)[0]
    entries = [struct.unpack_from(">4sII", whole, 132 + 12 * i) for i in range(count)]
    moved = b"".join(struct.pack(">4sII", name, at + 12, size) for name, at, size in entries)
    new = struct.pack(">4sII", b"A2B0", len(whole) + 12, len(lut))
    head = struct.pack(">I", len(whole) + 12 + len(lut)) + whole[4:12] + b"prtr" + b"CMYKLab " + whole[24:128]
    return head + struct.pack(">I", count + 1) + moved + new + whole[132 + 12 * count :] + lut


def test_what_was_converted_is_not_converted_again(tmp_path):
    picture = PICTURE.copy()
    picture.info["icc_profile"] = WIDE["display p3"]
    once = load_image(picture)
    assert "icc_profile" not in once.info and picture.info["icc_profile"] == WIDE["display p3"]
    assert difference(load_image(once), once) == 0
    assert difference(load_image(save_image(once, tmp_path / "a.png")), once) == 0


def test_a_picture_that_is_srgb_already_keeps_every_level(tmp_path):
    PICTURE.save(tmp_path / "a.png", icc_profile=SRGB.tobytes())
    assert difference(load_image(tmp_path / "a.png"), PICTURE) == 0


@pytest.mark.parametrize("icc", [b"nonsense", WIDE["adobe rgb"][:200], GREY, cmyk_profile()])
def test_a_profile_of_no_use_is_said_and_the_picture_is_read_without(tmp_path, icc):
    PICTURE.save(tmp_path / "a.png", icc_profile=icc)
    with pytest.warns(UserWarning, match=r"a\.png has a broken colour profile \(.*taken as sRGB"):
        assert difference(load_image(tmp_path / "a.png"), PICTURE) == 0


# --- PIL images: frames, depth, closed files -------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_a_frame_is_read_as_it_is_and_the_caller_stays_at_it(tmp_path, suffix):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    first, *others = (Image.new("RGB", (5, 5), colour) for colour in colours)
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=others, **options)
    with Image.open(tmp_path / f"a.{suffix}") as opened:
        for frame in (2, 0, 1):
            opened.seek(frame)
            assert load_image(opened).getpixel((0, 0)) == colours[frame] and opened.tell() == frame


EIGHT, SIXTEEN = np.arange(256).reshape(16, 16), np.arange(256).reshape(16, 16) * 257


@pytest.mark.parametrize("levels", [EIGHT, SIXTEEN])
@pytest.mark.parametrize("mode", ["I", "I;16"])
def test_in_memory_the_range_of_values_says_how_many_bits_they_have(mode, levels):
    picture = Image.fromarray(levels.astype({"I": np.int32, "I;16": np.uint16}[mode]))
    assert picture.mode == mode
    for source in (picture, levels.astype(np.uint16)):
        np.testing.assert_array_equal(np.asarray(load_image(source))[..., 0], EIGHT)


def test_floats_of_a_pil_image_go_to_1_or_to_255():
    for levels in (EIGHT / 255, EIGHT.astype(float)):
        picture = Image.fromarray(levels.astype(np.float32))
        np.testing.assert_array_equal(np.asarray(load_image(picture))[..., 0], EIGHT)
    for wrong in (-EIGHT, EIGHT * 2, EIGHT * np.nan):
        with pytest.raises(ValueError, match="floats must lie|finite"):
            load_image(Image.fromarray(wrong.astype(np.float32)))


def test_a_dark_file_of_16_bits_stays_dark(tmp_path):
    for suffix in ("png", "tiff"):
        Image.fromarray(EIGHT.astype(np.uint16)).save(tmp_path / f"a.{suffix}")
        for source in (tmp_path / f"a.{suffix}", Image.open(tmp_path / f"a.{suffix}")):
            assert np.asarray(load_image(source)).max() == 1


def test_a_transparent_level_of_16_bits_is_white(tmp_path):
    Image.fromarray(SIXTEEN.astype(np.uint16)).save(tmp_path / "a.png", transparency=int(SIXTEEN[3, 3]))
    read = np.asarray(load_image(tmp_path / "a.png"))[..., 0]
    assert read[3, 3] == 255 and (np.delete(read, 51) == np.delete(EIGHT, 51)).all()


def test_a_closed_or_truncated_pil_image_is_a_sentence(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    with Image.open(tmp_path / "cut.png") as cut:
        for image in (closed, cut):
            with pytest.raises(ValueError, match="The image cannot be read any more"):
                load_image(image)


# --- arrays ----------------------------------------------------------------------------------------------


def layouts(values: np.ndarray) -> dict[str, object]:
    first = np.moveaxis(values, -1, 0)
    tensor = torch.from_numpy(np.ascontiguousarray(first))
    return {
        "reversed twice": values[::-1, ::-1][::-1, ::-1],
        "a window": np.pad(values, ((1, 1), (1, 1), (0, 0)))[1:-1, 1:-1],
        "columns first": np.asfortranarray(values),
        "another byte order": values.astype(values.dtype.newbyteorder(">")),
        "channels first": first,
        "a subclass": values.view(type("Subclass", (np.ndarray,), {})),
        "read-only": np.frombuffer(values.tobytes(), values.dtype).reshape(values.shape),
        "a tensor": tensor,
        "a tensor, channels last in memory": tensor[None].contiguous(memory_format=torch.channels_last),
        "a tensor with gradients": tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor,
        "a sparse tensor": tensor if values.dtype.kind == "u" else tensor.to_sparse(),
    }


@pytest.mark.parametrize("kind", ["uint8", "int16", "int32", "int64", "uint32", "uint64", "float32", "float64"])
def test_every_layout_of_the_same_values_reads_the_same(kind):
    values = PIXELS.astype(kind) / (255 if "float" in kind else 1)
    values = values.astype(kind)
    for layout, source in layouts(values).items():
        assert difference(load_image(source), PIXELS.astype(int)) == 0, layout
    halves = torch.from_numpy(PIXELS / 255).permute(2, 0, 1)
    for dtype in (torch.float16, torch.bfloat16):
        assert difference(load_image(halves.to(dtype)), PIXELS.astype(int)) <= 1


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((4, 4), complex),
        np.zeros((4, 4), object),
        np.zeros((4, 4), "M8[s]"),
        np.zeros((4, 4), [("r", "u1")]),
        np.zeros((4, 4), "V3"),
        np.array(3),
        np.zeros((5, 4, 2)),
        np.zeros((2, 4, 4, 3)),
        np.broadcast_to(np.uint8(0), (10**6, 10**6)),
        torch.zeros(3, 4, 4, dtype=torch.complex64),
        torch.zeros(3, 4, 4, device="meta"),
        torch.tensor(1.0),
        torch.zeros(0),
        Image.new("RGB", (0, 4)),
        b"\x89PNG\r\n\x1a\n\0\0",
        3,
        {},
    ],
    ids=lambda source: type(source).__name__,
)
def test_what_is_no_picture_is_refused_in_a_sentence(source):
    with pytest.raises((ValueError, TypeError)) as caught:
        load_image(source)
    assert caught.traceback[-1].path.name in ("reading.py", "files.py") and "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [0, -1, "many", None, 1.5, True, float("nan")])
def test_the_limit_is_a_count(limit):
    with pytest.raises((ValueError, TypeError), match="max_pixels"):
        load_image.__wrapped__(PICTURE, max_pixels=limit)


# --- paths -----------------------------------------------------------------------------------------------


def test_paths_of_every_kind_name_the_same_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    PICTURE.save("ü.png")
    for path in ("ü.png", Path("ü.png"), os.fsencode("ü.png"), "~/ü.png", Path("~/ü.png"), tmp_path / "ü.png"):
        assert difference(load_image(path), PICTURE) == 0


@pytest.mark.parametrize(
    ("path", "error", "sentence"),
    [
        ("", ValueError, "is empty"),
        ("a\0.png", ValueError, "no file name may have"),
        (Path("a\0.png"), ValueError, "no file name may have"),
        (b"a\0.png", ValueError, "no file name may have"),
        ("\ud800.png", ValueError, "no file name may have"),
        ("n" * 300 + ".png", ValueError, "name too long"),
        ("data:image/png;base64," + "A" * 10000, ValueError, "name too long"),
        ("a\nb.png", FileNotFoundError, r"a\\nb\.png"),
        ("file.png/b.png", FileNotFoundError, "no image file"),
        ("pipe.png", ValueError, "a device or a pipe"),
        ("/dev/zero", ValueError, "a device or a pipe"),
        ("loop.png", ValueError, "cannot be read"),
        (".", ValueError, "is a folder"),
        ("huge.webp", ValueError, "more than a picture's"),
        ("page.eps", ValueError, "Pillow does not decode"),
    ],
)
def test_what_is_no_regular_file_is_refused_without_opening_it(tmp_path, monkeypatch, path, error, sentence):
    monkeypatch.chdir(tmp_path)
    Path("file.png").write_text("x")
    os.mkfifo("pipe.png")
    os.symlink("loop.png", "loop.png")
    PICTURE.save("page.eps")
    with open("huge.webp", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(error, match=sentence) as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


# --- damaged files ---------------------------------------------------------------------------------------


@cache
def files() -> dict[str, bytes]:
    """A small file of every kind that Pillow writes and reads."""
    grey, moving = PICTURE.convert("L"), {"save_all": True, "append_images": [PICTURE.rotate(90)]}
    told = {"icc_profile": WIDE["display p3"], "exif": rotated()}
    kinds = {
        "png": ("PNG", PICTURE, told),
        "palette.png": ("PNG", PICTURE.quantize(16), {"transparency": 3}),
        "16.png": ("PNG", Image.fromarray(SIXTEEN.astype(np.uint16)), {}),
        "moving.png": ("PNG", PICTURE, moving),
        "jpg": ("JPEG", PICTURE, told),
        "cmyk.jpg": ("JPEG", PICTURE.convert("CMYK"), {"progressive": True}),
        "gif": ("GIF", PICTURE, moving),
        "webp": ("WEBP", PICTURE, told),
        "moving.webp": ("WEBP", PICTURE, moving),
        "avif": ("AVIF", PICTURE, told),
        "tiff": ("TIFF", PICTURE, told),
        "lzw.tiff": ("TIFF", PICTURE, {"compression": "tiff_lzw"}),
        "float.tiff": ("TIFF", Image.fromarray(SIXTEEN.astype(np.float32) / 65535), {}),
        "bmp": ("BMP", PICTURE, {}),
        "palette.bmp": ("BMP", PICTURE.quantize(16), {}),
        "qoi": ("QOI", PICTURE, {}),
        "jp2": ("JPEG2000", PICTURE, {}),
        "ppm": ("PPM", PICTURE, {}),
        "pgm": ("PPM", grey, {}),
        "ico": ("ICO", PICTURE.resize((32, 32)), {}),
        "icns": ("ICNS", PICTURE.resize((64, 64)), {}),
        "tga": ("TGA", PICTURE, {"compression": "tga_rle"}),
        "pcx": ("PCX", PICTURE, {}),
        "dds": ("DDS", PICTURE.convert("RGBA"), {}),
        "sgi": ("SGI", PICTURE, {}),
    }
    found = {}
    for name, (kind, picture, options) in kinds.items():
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        found[name] = buffer.getvalue()
    return found | {"plain.ppm": b"P3\n4 4\n255\n" + b" ".join(b"%d" % i for i in range(48)) + b"\n"}


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def picture_or_sentence(folder: Path, name: str, content: bytes) -> None:
    path = folder / f"picture.{name}"
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            assert load_image(path).mode == "RGB"
        except ValueError as error:
            assert type(error) is ValueError and path.name in str(error) and "\n" not in str(error)
    assert all("broken colour profile" in str(each.message) for each in told)


def test_every_kind_of_file_is_read_while_it_is_whole(tmp_path):
    for name, content in files().items():
        (tmp_path / name).write_bytes(content)
        assert load_image(tmp_path / name).mode == "RGB", name


spot = st.floats(0, 1, exclude_max=True)
edits = st.one_of(
    st.tuples(st.just("cut"), spot, st.none()),
    st.tuples(st.just("flip"), spot | st.floats(0, 0.1), st.integers(0, 7)),
    st.tuples(st.just("write"), spot | st.floats(0, 0.1), st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("write"), st.floats(0, 0.1), st.sampled_from([b"\xff" * 4, bytes(4), b"\x7f" + b"\xff" * 3])),
    st.tuples(st.just("insert"), spot, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("drop"), spot, st.integers(1, 8)),
)


def edited(content: bytes, edit: tuple) -> bytes:
    kind, where, what = edit
    at = int(where * len(content))
    if kind == "cut":
        return content[:at]
    if kind == "flip" and content:
        return content[:at] + bytes([content[at] ^ (1 << what)]) + content[at + 1 :]
    if kind == "write":
        return content[:at] + what + content[at + len(what) :]
    return content[:at] + (what + content[at:] if kind == "insert" else content[at + (what or 0) :])


@settings(quick, max_examples=400)
@given(st.sampled_from(sorted(files())), st.lists(edits, min_size=1, max_size=4))
@example("gif", [("cut", 0.62, None)])
@example("qoi", [("cut", 0.5, None)])
def test_a_mutated_file_is_a_picture_or_our_sentence(tmp_path, name, changes):
    content = files()[name]
    for change in changes:
        content = edited(content, change)
    picture_or_sentence(tmp_path, name, content)


def chunk(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    return struct.pack(">I", size) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


BOMB = zlib.compress(bytes(2 * 10**8), 9)
CHUNKS = {
    "compressed text": chunk(b"zTXt", b"a\0\0" + BOMB),
    "compressed international text": chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB),
    "a compressed profile": chunk(b"iCCP", b"a\0\0" + BOMB),
    "much text": b"".join(chunk(b"zTXt", b"%d\0\0" % i + zlib.compress(bytes(10**6))) for i in range(80)),
    "a chunk of wrong length": chunk(b"tEXt", b"a\0b", 2),
    "a chunk longer than the file": chunk(b"tEXt", b"a\0b", 2**31 - 1),
    "a chunk of negative length": chunk(b"tEXt", b"a\0b", 2**32 - 1),
    "an empty palette": chunk(b"PLTE", b""),
    "EXIF of nothing": chunk(b"eXIf", b""),
    "EXIF of noise": chunk(b"eXIf", b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "physical size cut": chunk(b"pHYs", b"\0"),
    "frames without any": chunk(b"acTL", bytes(8)),
}


@pytest.mark.parametrize("case", CHUNKS)
def test_a_png_with_a_bad_chunk_is_a_picture_or_our_sentence(tmp_path, case):
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    whole = buffer.getvalue()
    picture_or_sentence(tmp_path, "png", whole[:33] + CHUNKS[case] + whole[33:])
    picture_or_sentence(tmp_path, "png", whole[:-12] + CHUNKS[case] + whole[-12:])


@pytest.mark.parametrize("error", [RecursionError, MemoryError, struct.error, IndexError, AttributeError, SystemError])
def test_a_decoder_may_raise_anything(tmp_path, monkeypatch, error):
    PICTURE.save(tmp_path / "a.png")

    def fails(*_, **__):
        raise error("two\nlines")

    for where in ("PIL.Image.open", "PIL.ImageFile.ImageFile.load"):
        with monkeypatch.context() as patched:
            patched.setattr(where, fails)
            with pytest.raises(ValueError, match=r"a\.png is damaged or truncated \(two\); fetch it again"):
                load_image(tmp_path / "a.png")


def test_the_limit_is_checked_before_a_pixel_is_decoded(tmp_path, monkeypatch):
    Image.new("L", (11, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(ValueError, match="limit of 100;"):
        load_image(tmp_path / "a.png", max_pixels=100)
