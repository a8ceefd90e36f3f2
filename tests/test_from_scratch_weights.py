import json
import shutil

import diffusers
import pytest
import torch
import transformers
from from_scratch_folders import folder, ours, rewrite_json, rewrite_weights
from safetensors.torch import load_file, save_file

from context_diffusion.from_scratch import DDIM, DDPM, Autoencoder, Euler, StableDiffusion, TextEncoder, UNet
from context_diffusion.from_scratch.weights import NAMES, build, load, load_scheduler, our_name

SD15 = {"cross_attention_dim": 768}
SD21 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
OPEN_CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
OPEN_CLIP |= {"hidden_act": "gelu"}
KL = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2,
}  # fmt: skip
FULL_SIZE = {  # (ours, the library's class, configuration): (parameters, tensors) as published
    "SD 1.5 U-Net": (UNet, diffusers.UNet2DConditionModel, SD15, 859_520_964, 686),
    "SD 2.1 U-Net": (UNet, diffusers.UNet2DConditionModel, SD21, 865_910_724, 686),
    "SD autoencoder": (Autoencoder, diffusers.AutoencoderKL, KL, 83_653_863, 248),
    "SD 1.5 text encoder": (TextEncoder, transformers.CLIPTextModel, CLIP, 123_060_480, 196),
    "SD 2.1 text encoder": (TextEncoder, transformers.CLIPTextModel, OPEN_CLIP, 340_387_840, 372),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_models_have_the_published_parameters(name):
    mine, theirs, config, parameters, tensors = FULL_SIZE[name]
    with torch.device("meta"):
        own = build(mine, config).state_dict()
        text = theirs is transformers.CLIPTextModel
        published = theirs(transformers.CLIPTextConfig(**config)) if text else theirs(**config)
    assert sum(tensor.numel() for tensor in own.values()) == parameters
    assert len(own) == tensors
    theirs = {key: value.shape for key, value in published.state_dict().items() if "position_ids" not in key}
    renamed = {our_name(key): shape for key, shape in theirs.items()}
    assert len(renamed) == len(theirs)
    assert renamed.keys() == own.keys()
    for key, shape in renamed.items():
        assert tuple(own[key].shape) == tuple(shape[:2] if own[key].ndim == 2 else shape)


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(folder("sd1"), tmp_path / "model")


def outputs(model: StableDiffusion) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    context = model.text_encoder(model.tokenizer("a boat"))
    image = model.autoencoder.decode(x)
    return [model.unet(x, 7, context), image, model.autoencoder.encode(image)]


def test_old_layouts_give_the_same_outputs(copy):
    """The names of transformers 4 with position ids, the autoencoder's of 2022, its attention as convolutions."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old_vae(weights):
        renamed = {}
        for name, tensor in weights.items():
            for new, before in old.items():
                name = name.replace(f".{new}.", f".{before}.")
            as_convolution = name.endswith(("query.weight", "proj_attn.weight"))
            renamed[name] = tensor[..., None, None] if as_convolution else tensor
        assert len(renamed) == len(weights) and any("proj_attn" in name for name in renamed)
        return renamed

    def old_text(weights):
        prefixed = {f"text_model.{name}": tensor for name, tensor in weights.items()}
        return prefixed | {"text_model.embeddings.position_ids": torch.arange(16)[None]}

    rewrite_weights(copy / "vae", old_vae)
    rewrite_weights(copy / "text_encoder", old_text)
    for a, b in zip(outputs(StableDiffusion.from_pretrained(copy)), outputs(ours("sd1")), strict=True):
        assert torch.equal(a, b)


def test_half_precision_on_disk_is_single_precision_in_memory(copy):
    for part in ("unet", "vae", "text_encoder"):
        rewrite_weights(copy / part, lambda weights: {name: tensor.half() for name, tensor in weights.items()})
    model = StableDiffusion.from_pretrained(copy)
    assert {p.dtype for p in [*model.unet.parameters(), *model.text_encoder.parameters()]} == {torch.float32}
    for name, weight in ours("sd1").unet.state_dict().items():
        assert torch.equal(model.unet.state_dict()[name], weight.half().float())


def test_shards_and_variants(copy):
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    names = sorted(weights)
    where = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for shard in set(where.values()):
        save_file({name: weights[name] for name in names if where[name] == shard}, copy / "unet" / shard)
    path.with_suffix(".safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    path.unlink()
    vae = copy / "vae"
    (vae / "diffusion_pytorch_model.safetensors").rename(vae / "diffusion_pytorch_model.fp16.safetensors")
    for a, b in zip(outputs(StableDiffusion.from_pretrained(copy)), outputs(ours("sd1")), strict=True):
        assert torch.equal(a, b)


def test_nothing_missing_nothing_left_over(copy):
    unet = copy / "unet"

    def drop(weights):
        return {name: tensor for name, tensor in weights.items() if "conv_norm_out" not in name}

    rewrite_weights(unet, drop)
    with pytest.raises(ValueError, match="UNet must fit: the weights lack norm_out.bias, norm_out.weight"):
        load(UNet, unet)
    rewrite_weights(copy / "vae", lambda weights: weights | {"encoder.extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="the model's parameters have no place for encoder.extra"):
        load(Autoencoder, copy / "vae")
    rewrite_json(copy / "text_encoder" / "config.json", intermediate_size=65)
    with pytest.raises(ValueError, match=r"mlp.expand.* is \(64.* in the file and \(65"):
        load(TextEncoder, copy / "text_encoder")


def test_broken_folders(copy, tmp_path):
    unet = copy / "unet"
    path = unet / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load(UNet, unet)
    path.rename(unet / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="only; .* holds none"):
        load(UNet, unet)
    (unet / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json is not there"):
        load(UNet, unet)
    with pytest.raises(ValueError, match="model_index.json"):
        StableDiffusion.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="hf download some/model --local-dir model"):
        StableDiffusion.from_pretrained("some/model")


@pytest.mark.parametrize(
    "name", ["text_encoder/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"]
)
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is no JSON"),
        (b"version https://git-lfs.github.com/spec/v1", "is no JSON"),
        (b"[]", "must hold names and values"),
        (b'{"hidden_size": "x", "beta_schedule": 3, "model": {"vocab": 3, "merges": 3}}', "describe|holds no"),
        (b'{"hidden_size": [], "num_train_timesteps": "x"}', "describe|holds no"),
    ],
)
def test_damaged_settings_get_one_sentence_that_names_the_file(copy, name, content, sentence):
    (copy / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        StableDiffusion.from_pretrained(copy)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_nan_are_refused(copy):
    rewrite_weights(copy / "vae", lambda weights: {name: tensor * torch.nan for name, tensor in weights.items()})
    with pytest.raises(ValueError, match="Weights must be finite"):
        StableDiffusion.from_pretrained(copy)


def test_configurations_that_are_not_written_here():
    with pytest.raises(ValueError, match="UNet is written without addition_embed_type='text_time'"):
        build(UNet, {"addition_embed_type": "text_time"})
    with pytest.raises(ValueError, match="asks for 'AttnDownBlock2D'"):
        build(UNet, {"down_block_types": ["AttnDownBlock2D"] * 4})
    with pytest.raises(ValueError, match="hidden_act must be one of"):
        build(TextEncoder, {"hidden_act": "relu"})
    with pytest.raises(ValueError, match="multiple of its number of heads; got 320 and 7"), torch.device("meta"):
        build(UNet, {"attention_head_dim": 7})


@pytest.mark.parametrize(
    ("name", "kind"),
    [("DDIMScheduler", DDIM), ("DDPMScheduler", DDPM), ("EulerDiscreteScheduler", Euler), ("PNDMScheduler", DDIM)],
)
def test_scheduler_by_name(tmp_path, name, kind):
    getattr(diffusers, name)(beta_schedule="scaled_linear").save_pretrained(tmp_path)
    scheduler = load_scheduler(tmp_path)
    assert type(scheduler) is kind
    assert (scheduler.clip is None) == (name in ("EulerDiscreteScheduler", "PNDMScheduler"))


def test_the_table_has_no_dead_rows():
    """Every row renames something in the files of SD 1.5, 2.1 or their old forms."""
    with torch.device("meta"):
        models = [theirs(**config) for _, theirs, config, *_ in FULL_SIZE.values() if theirs.__module__[0] == "d"]
        models.append(transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP)))
    names = {f".{name}." for model in models for name in model.state_dict()}
    names |= {f".text_model{name}" for name in names} | {f".{old}." for old in ("query", "key", "value", "proj_attn")}
    dead = []
    for theirs, ours_ in NAMES:
        if not any(f".{theirs}." in name for name in names):
            dead.append(theirs)
        names = {name.replace(f".{theirs}.", f".{ours_}.") for name in names}
    assert not dead
