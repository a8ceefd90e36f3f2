"""Random model folders with the structure of the offline one, small enough to build in a test."""

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from safetensors.torch import save_file
from tiny import (
    WIDTH,
    tiny_controlnet,
    tiny_image_encoder,
    tiny_sd15,
    tiny_sdxl,
    tiny_tokenizer,
)
from transformers import (
    CLIPConfig,
    CLIPModel,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTModel,
)

from context_diffusion.checkpoints import NETWORKS
from context_diffusion.context.projector import ContextProjector
from context_diffusion.scenes.judge import HEADS
from context_diffusion.scenes.reader import ReaderNetwork

LAYERS = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}


def random_clip() -> CLIPModel:
    """A CLIP of 32x32 pixels in patches of 4, on the words of ``tiny_tokenizer``."""
    tokenizer = tiny_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
    length = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    config = CLIPConfig(
        text_config={**LAYERS, **ids, **length, "projection_dim": WIDTH},
        vision_config={**LAYERS, "image_size": 32, "patch_size": 4, "projection_dim": WIDTH},
        projection_dim=WIDTH,
    )
    model = CLIPModel(config).eval()
    for name, weight in model.named_parameters():  # the default spread of 0.02 makes all inputs look the same
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=1.0 if "embedding" in name else WIDTH**-0.5)
    return model


@torch.no_grad()
def wide_open(model: torch.nn.Module, last: torch.nn.Module, bias: float) -> torch.nn.Module:
    """Spread a depth network's weights, and lift its last layer, which ends in a ReLU, so that it stays open."""
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    last.bias.fill_(bias)
    return model


def random_depth() -> DepthAnythingForDepthEstimation:
    """A depth network of 28x28 pixels whose output is not constant."""
    backbone = Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=28, patch_size=14,
        out_features=["stage1", "stage2"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=WIDTH, reassemble_factors=[2, 1],
        neck_hidden_sizes=[16, 16], fusion_hidden_size=16, head_in_index=-1, head_hidden_size=8,
    )  # fmt: skip
    model = DepthAnythingForDepthEstimation(config).eval()
    return wide_open(model, model.head.conv3, 30.0)


@cache
def scenes_folder() -> Path:
    """A folder of the structure of tiny-scenes: pipeline, context projector, CLIP, ControlNets, depth, DINO."""
    folder = Path(mkdtemp(prefix="worlds-"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        tiny_sd15().save_pretrained(folder)
        clip = random_clip()
        clip.save_pretrained(folder / "clip")
        clip.vision_model.save_pretrained(folder / "image_encoder")
        projector = ContextProjector(vision_width=WIDTH, cross_attention_dim=WIDTH)
        for weight in projector.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        projector.save_pretrained(folder / "context_projector")
        for kind in ("canny", "depth"):
            tiny_controlnet().save_pretrained(folder / f"controlnet-{kind}")
        random_depth().save_pretrained(folder / "depth")
        vit = ViTModel(ViTConfig(**LAYERS, image_size=32, patch_size=8), add_pooling_layer=False)
        vit.save_pretrained(folder / "dino")
    return folder


@cache
def judged_folder() -> Path:
    """The same folder with a random judge and reader in it: all that the protocols ask for."""
    folder = Path(mkdtemp(prefix="worlds-"))
    shutil.copytree(scenes_folder(), folder, dirs_exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        config = ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
            num_labels=sum(map(len, HEADS.values())),
        )  # fmt: skip
        ResNetForImageClassification(config).eval().save_pretrained(folder / "judge")
        ReaderNetwork(width=8).save_pretrained(folder / "texture")
    return folder


@cache
def hub_folder(xl: bool = False, *, adapter: bool = False, control: bool = False) -> Path:
    """A saved random Stable Diffusion or SDXL, with an IP-Adapter or a Canny ControlNet beside it or without."""
    folder = Path(mkdtemp(prefix="worlds-"))
    pipe = (tiny_sdxl if xl else tiny_sd15)()
    pipe.save_pretrained(folder)
    if control:
        tiny_controlnet(xl).save_pretrained(folder / "controlnet-canny")
    if adapter:
        tiny_image_encoder().save_pretrained(folder / "ip-adapter" / "image_encoder")
        save_file(random_adapter(pipe.unet), folder / "ip-adapter" / "ip-adapter.safetensors")
    return folder


def random_adapter(unet) -> dict[str, torch.Tensor]:
    """The weights of an IP-Adapter of four tokens, in the layout of the published files."""
    generator = torch.Generator().manual_seed(1)
    width = unet.config.cross_attention_dim
    state = {
        "image_proj.proj.weight": torch.randn(4 * width, WIDTH, generator=generator) * 0.3,
        "image_proj.proj.bias": torch.zeros(4 * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(names):
        inner = unet.get_submodule(name.removesuffix(".processor")).inner_dim
        for part in ("to_k_ip", "to_v_ip"):
            weight = torch.randn(inner, width, generator=generator) * 0.3
            state[f"ip_adapter.{2 * number + 1}.{part}.weight"] = weight
    return state


def misplace(monkeypatch, kind: str, folder: Path) -> None:
    """Let the table look for the offline network of a kind in ``folder``."""
    row = NETWORKS[kind, "tiny-fusion"]
    monkeypatch.setitem(NETWORKS, (kind, "tiny-fusion"), replace(row, location=str(folder)))
