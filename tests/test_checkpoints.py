import diffusers
import pytest
import tiny_transformers
import torch
from tiny import tiny_control, tiny_controlnet, tiny_sd15, tiny_sdxl

from context_diffusion import ContextDiffusion, checkpoints
from context_diffusion.checkpoints import MODELS, dtype_keyword, find_model, find_part
from context_diffusion.pipelines import as_pipeline, load_pipeline


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved random pipeline of each layout with a Canny ControlNet beside."""
    root = tmp_path_factory.mktemp("models")
    for xl, build in ((False, tiny_sd15), (True, tiny_sdxl)):
        folder = root / ("xl" if xl else "sd")
        build().save_pretrained(folder)
        tiny_controlnet(xl).save_pretrained(folder / "controlnet-canny")
    return root


def sample(pipe, **options):
    seed = torch.Generator().manual_seed(3)
    options = {"num_inference_steps": 2, "output_type": "np", "height": 32, "width": 32} | options
    return torch.from_numpy(pipe("a red house", generator=seed, **options).images)


@pytest.mark.parametrize("layout", ["sd", "xl"])
def test_a_saved_folder_loads_as_the_plain_pipeline_it_was(folders, layout):
    before = (tiny_sdxl if layout == "xl" else tiny_sd15)()
    after = load_pipeline(folders / layout, device="cpu")
    assert type(after) is type(before)
    torch.testing.assert_close(sample(after), sample(before))


def test_half_precision_on_disk_is_single_precision_on_a_cpu(tmp_path):
    tiny_sd15(fresh=True).to(torch.float16).save_pretrained(tmp_path)
    tiny_controlnet(fresh=True).to(torch.float16).save_pretrained(tmp_path / "controlnet-depth")
    pipe = load_pipeline(tmp_path, control="depth", device="cpu")
    parts = (pipe.unet, pipe.vae, pipe.text_encoder, pipe.controlnet)
    assert {part.dtype for part in parts} == {torch.float32}
    weights = tiny_sd15().text_encoder.state_dict()
    for name, weight in pipe.text_encoder.state_dict().items():
        torch.testing.assert_close(weight, weights[name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("layout", ["sd", "xl"])
def test_control_and_image_variants_match_those_built_by_hand(folders, layout):
    xl = layout == "xl"
    pipe = load_pipeline(folders / layout, control="canny", device="cpu")
    assert type(pipe) is type(tiny_control(xl))
    hint = torch.rand(1, 3, 32, 32)
    by_hand = sample(tiny_control(xl), image=hint)
    torch.testing.assert_close(sample(pipe, image=hint), by_hand)
    assert (sample(pipe, image=1 - hint) - by_hand).abs().max() > 1e-3  # the hint acts
    both = load_pipeline(folders / layout, control="canny", image_to_image=True, device="cpu")
    family = "StableDiffusionXL" if xl else "StableDiffusion"
    assert type(both) is getattr(diffusers, f"{family}ControlNetImg2ImgPipeline")


@pytest.mark.parametrize("layout", ["sd", "xl"])
def test_several_controlnets_are_named_in_a_list_and_add_up(folders, layout):
    one = load_pipeline(folders / layout, control="canny", device="cpu")
    twice = load_pipeline(folders / layout, control=["canny", "canny"], device="cpu")
    assert len(twice.controlnet.nets) == 2
    hint = torch.rand(1, 3, 32, 32)
    halves = sample(twice, image=[hint, hint], controlnet_conditioning_scale=[0.3, 0.5])
    torch.testing.assert_close(halves, sample(one, image=hint, controlnet_conditioning_scale=0.8))
    with pytest.raises(ValueError, match="no ControlNet 'depth'"):
        load_pipeline(folders / layout, control=["canny", "depth"], device="cpu")


@pytest.mark.parametrize("build", [tiny_sd15, tiny_sdxl])
def test_a_variant_shares_the_parts_and_leaves_their_precision(build):
    pipe = build(fresh=True)
    pipe.unet.to(torch.bfloat16)
    other = as_pipeline(pipe, image_to_image=True)
    assert all(part is pipe.components[key] for key, part in other.components.items())
    assert other.unet.dtype == torch.bfloat16
    assert type(as_pipeline(other)) is type(pipe)


def test_a_folder_that_says_no_size_is_no_pipeline(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is no Stable Diffusion pipeline with a unet and a vae .*sample_size"):
        find_model(tmp_path)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("SDXL", "sdxl"), ("sd1.5", "sd15"), ("tiny_scenes", "tiny-scenes"), ("tinyscene", "tiny-scenes")],
)
def test_near_names_are_offered(typed, meant):
    with pytest.raises(ValueError, match=f"did you mean .*{meant}"):
        find_model(typed)


def test_a_name_like_nothing_gets_the_list():
    with pytest.raises(ValueError, match="tiny-scenes, sd15, sdxl, .*z-image, an existing folder") as caught:
        find_model("qqqqqqqqqqqq")
    assert "did you mean" not in str(caught.value)


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        find_model(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="no Stable Diffusion pipeline"):
        find_model(tmp_path)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux1-dev", "sd35-medium", "qwen-image", "z-image", "some/thing"])
def test_weights_that_are_not_here_get_one_sentence(name):
    with pytest.raises(FileNotFoundError, match="hf download .* 'tiny-scenes'"):
        load_pipeline(name, device="cpu")


def test_missing_offline_models_name_the_command(monkeypatch, tmp_path):
    model = checkpoints.Model("tiny-scenes", str(tmp_path / "none"), 1, "MIT")
    monkeypatch.setitem(MODELS, "tiny-scenes", model)
    with pytest.raises(FileNotFoundError, match="make train"):
        load_pipeline()


def test_a_damaged_folder_is_named(folders, tmp_path):
    tiny_sd15().save_pretrained(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="unet does not load as UNet2DConditionModel"):
        load_pipeline(tmp_path, device="cpu")


def test_a_control_without_weights_is_refused_before_loading(folders):
    with pytest.raises(ValueError, match="no ControlNet 'depth'"):
        load_pipeline(folders / "sd", control="depth", device="cpu")
    assert find_part(find_model(folders / "sd"), "depth") is None


@pytest.mark.parametrize(("installed", "word"), [("0.39.0", "torch_dtype"), ("0.42.1", "dtype"), ("1.0.dev0", "dtype")])
def test_precision_is_named_as_the_installed_version_wants(monkeypatch, installed, word):
    monkeypatch.setattr(checkpoints, "version", lambda package: installed)
    assert dtype_keyword(torch.float16) == {word: torch.float16}


def test_every_row_of_the_table_says_what_a_user_must_know():
    for name, model in MODELS.items():
        assert model.name == name and model.licence and model.vram_gb > 0
        assert ("ip-adapter" in model.parts) == model.adapter_file.endswith(".safetensors")


@pytest.mark.parametrize("kind", tiny_transformers.KINDS)
def test_a_saved_transformer_loads_as_the_pipeline_it_was(kind, tmp_path):
    made = tiny_transformers.pipeline(kind)
    saved = type(made).__mro__[2](**made.components)  # diffusers' own class, under the one that needs no encoders
    saved.save_pretrained(tmp_path)
    encoders = {name: None for name, part in made.components.items() if part is None}
    loaded = load_pipeline(tmp_path, device="cpu", **encoders)
    assert type(loaded) is type(saved) and find_model(tmp_path).transformer
    before, after = saved.transformer.state_dict(), loaded.transformer.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_transformers_are_for_pictures_from_text_alone():
    with pytest.raises(ValueError, match="ContextDiffusion keeps to U-Nets.*'flux1-dev'"):
        ContextDiffusion.from_pretrained("flux1-dev")
    for asked in ({"control": "canny"}, {"image_to_image": True}):
        with pytest.raises(ValueError, match="'z-image' draws with a transformer"):
            load_pipeline("z-image", device="cpu", **asked)
