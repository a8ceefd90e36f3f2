"""A damaged model folder is refused in one sentence that names the file or the part, and no code in it ever runs."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import tiny_sd15, tiny_sdxl
from worlds import hub_folder, judged_folder

import context_diffusion as cd
from context_diffusion import loading
from context_diffusion.checkpoints import load_part
from context_diffusion.context.projector import ContextProjector
from context_diffusion.control import DepthEstimator
from context_diffusion.files import TINY_FUSION
from context_diffusion.fusion.caption import Captioner
from context_diffusion.fusion.music import MusicTagger
from context_diffusion.fusion.speech import Transcriber
from context_diffusion.scenes import Judge

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 5678\n"


def whole(folder: Path):
    return cd.ContextDiffusion.from_pretrained(folder, device="cpu")


PARTS = {
    "unet": whole,
    "vae": whole,
    "text_encoder": whole,
    "image_encoder": whole,
    "context_projector": whole,
    "controlnet-canny": lambda folder: cd.load_pipeline(folder, control="canny", device="cpu"),
    "clip": lambda folder: cd.load_encoder("clip", folder),
    "dino": lambda folder: cd.load_encoder("dino", folder),
    "depth": DepthEstimator.from_pretrained,
    "judge": lambda folder: Judge.from_pretrained(folder / "judge"),
    "captioner": lambda folder: Captioner.from_pretrained(folder / "captioner"),
    "speech": lambda folder: Transcriber.from_pretrained(folder / "speech"),
    "music": lambda folder: MusicTagger.from_pretrained(folder / "music"),
}


@pytest.fixture
def folder(tmp_path, request) -> Path:
    """A copy of the offline world, small; and of the offline networks of fusion."""
    shutil.copytree(judged_folder(), tmp_path / "model")
    for part in ("captioner", "speech", "music"):
        shutil.copytree(TINY_FUSION / part, tmp_path / "model" / part)
    return tmp_path / "model"


def weights_of(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def rewrite(folder: Path, change) -> None:
    path = weights_of(folder)
    tensors = load_file(path)
    change(tensors, [name for name in sorted(tensors) if tensors[name].is_floating_point()])
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def lacking(tensors: dict, names: list[str]) -> None:
    del tensors[names[-1]]


def left_over(tensors: dict, names: list[str]) -> None:
    tensors["something.weight"] = torch.zeros(2)


def misfitting(tensors: dict, names: list[str]) -> None:
    tensors[names[0]] = torch.zeros(*tensors[names[0]].shape, 2)


def not_a_number(tensors: dict, names: list[str]) -> None:
    tensors[names[-1]] = tensors[names[-1]].clone()
    tensors[names[-1]].view(-1)[-1] = torch.nan


def infinite(tensors: dict, names: list[str]) -> None:
    tensors[names[0]] = tensors[names[0]].clone()
    tensors[names[0]].view(-1)[0] = -torch.inf


CHANGES = {
    lacking: "weights are missing",
    left_over: "weights have no place in it: something.weight",
    misfitting: "weights have another shape than its config.json says",
    not_a_number: "holds NaN or infinity in",
    infinite: "holds NaN or infinity in",
}


def refused(load, folder: Path, sentence: str, where: Path) -> None:
    """Loading raises one of our own sentences, which says what is wrong and where."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load(folder)
    said = str(caught.value)
    assert sentence in said and str(where) in said and "\n" not in said, said
    assert "context_diffusion" in traceback.extract_tb(caught.value.__traceback__)[-1].filename


@pytest.mark.parametrize("part", PARTS)
def test_weights_that_are_not_whole_are_refused(folder, part):
    before = weights_of(folder / part).read_bytes()
    for change, sentence in CHANGES.items():
        weights_of(folder / part).write_bytes(before)
        rewrite(folder / part, change)
        refused(PARTS[part], folder, sentence, folder / part)


@pytest.mark.parametrize("part", PARTS)
def test_files_that_are_not_whole_are_named(folder, part):
    weights, config = weights_of(folder / part), folder / part / "config.json"
    for path, made in ((weights, "no whole safetensors file"), (config, "is no JSON")):
        before = path.read_bytes()
        damaged = {"is empty": b"", "is a git-lfs pointer": POINTER, made: before[: len(before) // 2]}
        for sentence, content in damaged.items():
            path.write_bytes(content)
            refused(PARTS[part], folder, sentence, path)
        path.write_bytes(before)
    config.write_text("[]")
    refused(PARTS[part], folder, "must hold names and values", config)
    settings = json.loads(before)
    settings |= {"_class_name": "UNet1DModel"} if "_class_name" in settings else {"model_type": "bert"}
    config.write_text(json.dumps(settings))
    by_config = part in ("clip", "dino", "depth")  # the config itself says which class is built
    refused(PARTS[part], folder, "" if by_config else "is of another class", folder / part)
    weights.unlink()
    config.write_bytes(before)
    refused(PARTS[part], folder, "does not load as", folder / part)


@given(st.integers(0, 2**32), st.binary(min_size=1, max_size=8), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_part_changed_anywhere_in_its_header_or_config_loads_or_is_refused(place, written, config):
    folder = judged_folder().parent / "mutated"
    shutil.rmtree(folder, ignore_errors=True)
    ContextProjector(8, 8, 4, 2).save_pretrained(folder)
    path = folder / "config.json" if config else weights_of(folder)
    content = bytearray(path.read_bytes())
    place %= len(content) if config else 8 + int.from_bytes(content[:8], "little")
    content[place : place + len(written)] = written
    path.write_bytes(content)
    try:
        made = load_part(ContextProjector, str(folder))
    except ValueError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
    else:
        assert all(weight.isfinite().all() for weight in made.state_dict().values())


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("tokenizer/tokenizer.json", b"", "is empty"),
        ("tokenizer/tokenizer.json", b"{}", "does not load as"),
        ("tokenizer/tokenizer.json", b'{"version": ', "is no JSON"),
        ("tokenizer/tokenizer.json", None, "is no tokenizer"),
        ("tokenizer/tokenizer_config.json", None, "cannot read a prompt"),
        ("tokenizer", None, "is missing"),
        ("scheduler/scheduler_config.json", b"{}", "is of another class"),
        ("scheduler", None, "is missing"),
        ("model_index.json", b"{}", "does not load as a text-to-image pipeline"),
        ("model_index.json", b"[]", "must hold names and values"),
        ("model_index.json", POINTER, "is a git-lfs pointer"),
    ],
)
def test_a_pipeline_without_what_belongs_to_it_is_refused(folder, name, content, sentence):
    path = folder / name
    if content is not None:
        path.write_bytes(content)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    refused(whole, folder, sentence, folder if "pipeline" in sentence else folder / name.split("/")[0])


def test_parts_that_are_whole_and_of_different_sizes_are_refused(folder, tmp_path):
    ContextProjector(vision_width=32, cross_attention_dim=16).save_pretrained(folder / "context_projector")
    refused(whole, folder, "its cross_attention_dim is 16, and the U-Net's is 32", folder / "context_projector")
    tiny_sdxl().unet.save_pretrained(folder / "unet")
    refused(whole, folder, "its cross_attention_dim is", folder / "unet")
    xl = tmp_path / "xl"
    tiny_sdxl().save_pretrained(xl)
    shutil.copytree(folder / "controlnet-canny", xl / "controlnet-canny")
    with pytest.raises(ValueError, match="The ControlNet of .* does not fit: its cross_attention_dim"):
        cd.load_pipeline(xl, control="canny", device="cpu")
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": "StableDiffusionXLPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    tiny_sd15().unet.save_pretrained(folder / "unet")
    refused(whole, folder, "which has a second text encoder", folder)


def test_a_damaged_ip_adapter_is_refused(tmp_path):
    shutil.copytree(hub_folder(adapter=True), tmp_path / "model")
    adapter = tmp_path / "model" / "ip-adapter"
    before = weights_of(adapter).read_bytes()
    for change, sentence in ((lacking, "does not load as an IP-Adapter"), (not_a_number, "holds NaN or infinity")):
        weights_of(adapter).write_bytes(before)
        rewrite(adapter, change)
        refused(whole, tmp_path / "model", sentence, adapter)
    weights_of(adapter).write_bytes(before[:200])
    refused(whole, tmp_path / "model", "no whole safetensors file", weights_of(adapter))
    weights_of(adapter).write_bytes(before)
    rewrite(adapter / "image_encoder", lacking)
    refused(whole, tmp_path / "model", "weights are missing", adapter / "image_encoder")


def test_nothing_is_drawn_with_latents_or_pictures_of_nan(folder):
    model = whole(folder)
    fast = {"num_inference_steps": 2, "progress": False}

    def spoil(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"] * torch.nan}

    with pytest.raises(ValueError, match="A picture must be finite"):
        model(prompt="a cat", callback_on_step_end=spoil, **fast)
    with torch.no_grad():
        model.pipeline.vae.encoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="latents of pictures must be finite"):
        cd.latents.encode_images(model.pipeline, [torch.zeros(3, 32, 32)])
    encoder = cd.load_encoder("dino", folder)
    with torch.no_grad():
        next(encoder.network.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="An embedding must be finite"):
        encoder.encode_images([torch.zeros(3, 32, 32)])


# --- code in a folder ------------------------------------------------------------------------------------

LOADS = """
import sys
from context_diffusion import load_encoder, load_pipeline
from context_diffusion.control import DepthEstimator
from context_diffusion.fusion.caption import Captioner
from context_diffusion.fusion.music import MusicTagger
from context_diffusion.fusion.speech import Transcriber
import json, os
doors = [load_encoder, DepthEstimator.from_pretrained, Captioner.from_pretrained, MusicTagger.from_pretrained,
         Transcriber.from_pretrained, load_pipeline]
for entry in (["evil", "Evil"], ["os", "system"], ["transformers", "AutoModel"]):
    with open(os.path.join(sys.argv[1], "model_index.json"), "w") as file:
        json.dump({"_class_name": "StableDiffusionPipeline", "unet": entry, "vae": ["evil", "Evil"]}, file)
    for door in doors:
        try:
            door(sys.argv[1])
        except (ValueError, FileNotFoundError) as error:
            print("refused:", str(error)[:90])
"""


def test_code_beside_a_model_never_runs_whatever_standard_input_says(tmp_path):
    mark, model = tmp_path / "mark", tmp_path / "model"
    shutil.copytree(judged_folder() / "dino", model)
    (model / "evil.py").write_text(f"open({str(mark)!r}, 'w').write('ran')\nclass Evil: pass\n")
    names = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor", "AutoFeatureExtractor", "AutoProcessor",
             "AutoModelForDepthEstimation")  # fmt: skip
    remote = {"auto_map": dict.fromkeys(names, "evil.Evil"), "model_type": "evil"}
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        (model / name).write_text(json.dumps(remote))
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(model)],
        input="y\n" * 99,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused:") == 18 and "[y/N]" not in done.stdout + done.stderr
    assert not mark.exists()


# --- the hub ---------------------------------------------------------------------------------------------


def test_a_hub_that_does_not_answer_is_noticed_within_two_seconds(monkeypatch):
    from huggingface_hub import constants

    silent = socket.socket()  # it listens, and never answers
    silent.bind(("127.0.0.1", 0))
    silent.listen()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for address in ("http://127.0.0.1:9", f"http://127.0.0.1:{silent.getsockname()[1]}", "http://no.such.host.invalid"):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        loading._answers.cache_clear()
        start = time.monotonic()
        for name in ("sd15", "somebody/something"):
            with pytest.raises(FileNotFoundError, match="could not be downloaded") as caught:
                cd.load_pipeline(name, device="cpu")
            assert "\n" not in str(caught.value)
        with pytest.raises(FileNotFoundError, match="hf download facebook/dinov2-base"):
            cd.load_encoder("dinov2")
        assert time.monotonic() - start < 2 + loading.PATIENCE
    silent.close()
    loading._answers.cache_clear()


def test_a_hub_that_answers_is_asked(monkeypatch):
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    from huggingface_hub import constants

    class Yes(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Yes)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    loading._answers.cache_clear()
    assert loading.hub_answers()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not loading.hub_answers()
    server.shutdown()
    loading._answers.cache_clear()


def test_older_names_of_a_vaes_attention_and_half_precision_variants_are_whole(tmp_path):
    pipe = tiny_sd15()
    pipe.save_pretrained(tmp_path)
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    path = weights_of(tmp_path / "vae")
    tensors = load_file(path)
    for new, old in older.items():
        tensors = {name.replace(f"attentions.0.{new}", f"attentions.0.{old}"): value for name, value in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    loaded = cd.load_pipeline(tmp_path, device="cpu")
    for name, weight in pipe.vae.state_dict().items():
        torch.testing.assert_close(loaded.vae.state_dict()[name], weight)
    half = tmp_path / "half"
    tiny_sd15(fresh=True).to(torch.float16).save_pretrained(half, variant="fp16")
    assert cd.load_pipeline(half, device="cpu", variant="fp16").unet.dtype == torch.float32


def test_words_for_a_precision_and_devices_that_are_not_there(folder):
    assert cd.load_pipeline(folder, dtype="bf16", device="cpu").unet.dtype == torch.bfloat16
    for wrong in ("fp12", "int8"):
        with pytest.raises(ValueError, match="A precision is"):
            cd.load_pipeline(folder, dtype=wrong, device="cpu")
    absent = f"cuda:{torch.cuda.device_count()}"
    for load in (whole_on(absent), lambda f: cd.load_encoder("dino", f, device=absent), depth_on(absent)):
        with pytest.raises(ValueError, match="There is no device"):
            load(folder)
    with pytest.raises(ValueError, match="did you mean 'canny'"):
        cd.load_pipeline(folder, control="cany", device="cpu")
    assert cd.load_encoder(folder / "dino").encode_images([torch.zeros(3, 32, 32)]).shape == (1, 32)


def whole_on(device: str):
    return lambda folder: cd.ContextDiffusion.from_pretrained(folder, device=device)


def depth_on(device: str):
    return lambda folder: DepthEstimator.from_pretrained(folder, device=device)


def test_names_that_cannot_be_names_get_one_sentence():
    from context_diffusion.checkpoints import find_model, find_network

    for name in ("", "a\0b", "~nobody/x", "x" * 5000, "../../nowhere", os.sep.join("x" * 200), "\ud800", "a b/c"):
        for find in (find_model, lambda name: find_network("encoder", name)):
            with pytest.raises((ValueError, FileNotFoundError)) as caught:
                find(name)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    with pytest.raises(ValueError, match="the kind of network is 'encoder', .*; did you mean 'captioner'"):
        find_network("captoiner", "blip")
