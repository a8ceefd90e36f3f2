"""References for transformers: inverted and noised pictures, given what their own pipeline gives them."""

import copy
from dataclasses import replace

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from tiny import tiny_sd15
from tiny_transformers import COLUMNS, KINDS, ROWS, network, pipeline
from torch.testing import assert_close

import context_diffusion as cd
from context_diffusion import flow_invert, noised_reference, style_aligned
from context_diffusion.alignment import ReferenceCache, Trajectory
from context_diffusion.alignment.flow import given_by
from context_diffusion.alignment.networks import architecture_of

STEPS = 3
PROMPTS = ["a cat", "a dog", "an owl"]
GUIDED = {
    "flux": {"true_cfg_scale": 3.0}, "qwen": {"true_cfg_scale": 3.0},
    "sd3": {"guidance_scale": 5.0}, "z-image": {"guidance_scale": 5.0},
}  # fmt: skip
UNGUIDED = {"flux": {}, "flux2": {}, "qwen": {}, "sd3": {"guidance_scale": 1.0}, "z-image": {"guidance_scale": 0.0}}
EVERY = [(kind, guided) for kind in KINDS for guided in (False, True) if not guided or kind in GUIDED]


def size(kind: str, rows: int = ROWS, columns: int = COLUMNS) -> dict[str, int]:
    patch = 2 * pipeline(kind).vae_scale_factor
    return {"height": rows * patch, "width": columns * patch}


def picture(seed: int) -> torch.Tensor:
    return torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(seed))


def draw(kind: str, prompts=PROMPTS, guided=False, pipe=None, seeds=None, **options) -> torch.Tensor:
    pipe = pipeline(kind) if pipe is None else pipe
    how = GUIDED[kind] if guided else UNGUIDED[kind]
    if guided:
        how = how | {"negative_prompt": [""] * len(prompts)}
    noise = [torch.Generator().manual_seed(seed) for seed in (seeds or range(len(prompts)))]
    fixed = {"num_inference_steps": STEPS, "output_type": "latent", **size(kind)}
    return pipe(prompt=list(prompts), generator=noise, **{**fixed, **how, **options}).images


def noised(kind: str, count: int = 1, pipe=None, **options) -> Trajectory:
    pipe = pipeline(kind) if pipe is None else pipe
    pictures, prompts = [picture(k) for k in range(count)], ["a house", "a boat of wood"][:count]
    return noised_reference(pipe, pictures, prompts, **{"num_inference_steps": STEPS, **size(kind), **options})


def recorded(kind: str, guided: bool) -> Trajectory:
    """The first picture as a reference from outside: what the network meets at each step of plain drawing."""
    net, met = network(kind), []

    def keep(_, args, kwargs):
        rows = kwargs["hidden_states"] if kind != "z-image" else torch.stack(args[0]).squeeze(2)
        met.append(rows[:1].clone())

    handle = net.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        last = draw(kind, PROMPTS, guided)[:1]
    finally:
        handle.remove()
    separate = guided and architecture_of(pipeline(kind)).separate
    latents = torch.stack([*(met[::2] if separate else met), met[-1]])
    assert len(latents) == STEPS + 1 and last.shape[0] == 1
    return replace(noised(kind), prompts=(PROMPTS[0],), latents=latents, embeddings=_texts(kind))


def _texts(kind: str) -> dict[str, torch.Tensor]:
    how = {"num_inference_steps": STEPS, **size(kind)}
    return noised_reference(pipeline(kind), picture(0), PROMPTS[0], **how).embeddings


def moved(found: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (found - other).abs().flatten(1).amax(dim=1)


@pytest.mark.parametrize(("kind", "guided"), EVERY)
def test_the_first_picture_as_a_row_or_from_outside(kind, guided):
    reference = recorded(kind, guided)
    with style_aligned(pipeline(kind)):
        as_row = draw(kind, guided=guided)
    plain = draw(kind, guided=guided)
    with style_aligned(pipeline(kind), references=reference):
        from_outside = draw(kind, guided=guided)
    assert_close(as_row[0], plain[0], atol=1e-5, rtol=1e-5)
    assert_close(from_outside[1:], as_row[1:], atol=1e-4, rtol=1e-4)
    assert (moved(as_row, plain)[1:] > 1e-3).all()


def test_layers_skipped_by_sd3_are_skipped_for_references_too():
    skipping = {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 1.0, "skip_layer_guidance_start": -1.0}
    reference = recorded_with_skipping = None
    net, met = network("sd3"), []
    handle = net.register_forward_pre_hook(lambda _, args, kwargs: met.append(kwargs["hidden_states"][:1].clone()),
                                           with_kwargs=True)  # fmt: skip
    plain = draw("sd3", guided=True, **skipping)
    handle.remove()
    assert len(met) == 2 * STEPS
    reference = replace(noised("sd3"), prompts=(PROMPTS[0],), latents=torch.stack([*met[::2], met[-1]]),
                        embeddings=_texts("sd3"))  # fmt: skip
    with style_aligned(pipeline("sd3")):
        as_row = draw("sd3", guided=True, **skipping)
    for cache in (False, True):
        with style_aligned(pipeline("sd3"), references=reference, cache=cache):
            recorded_with_skipping = draw("sd3", guided=True, **skipping)
            again = draw("sd3", guided=True, **skipping)
        assert_close(recorded_with_skipping[1:], as_row[1:], atol=1e-4, rtol=1e-4)
        assert torch.equal(recorded_with_skipping, again)
    assert_close(as_row[0], plain[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "guided"), EVERY)
def test_a_picture_alone_is_as_in_its_batch_and_cached_as_not(kind, guided):
    reference, cache = noised(kind, 2), ReferenceCache()
    plain = draw(kind, guided=guided)
    with style_aligned(pipeline(kind), references=reference, weights=[0.3, 0.7]):
        found = draw(kind, guided=guided)
        alone = draw(kind, PROMPTS[1:2], guided, seeds=[1])
    with style_aligned(pipeline(kind), references=reference, weights=[0.3, 0.7], cache=cache):
        cached, again = draw(kind, guided=guided), draw(kind, guided=guided)
    assert_close(found[1:2], alone, atol=1e-4, rtol=1e-4)
    assert torch.equal(found, cached) and torch.equal(cached, again) and len(cache) >= STEPS
    assert (moved(found, plain) > 1e-3).all()
    assert torch.equal(draw(kind, guided=guided), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_weight_of_all_is_the_reference_alone(kind):
    two = noised(kind, 2)
    with style_aligned(pipeline(kind), references=two, weights=[0, 1]):
        found = draw(kind)
    with style_aligned(pipeline(kind), references=two[1]):
        assert_close(found, draw(kind), atol=1e-5, rtol=1e-5)
    with style_aligned(pipeline(kind), references=[two[0], two[1]]):
        joined = draw(kind)
    with style_aligned(pipeline(kind), references=two):
        assert torch.equal(joined, draw(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_not_shared_is_plain(kind):
    off = {"adain_queries": False, "adain_keys": False}
    plain = draw(kind)
    for settings in ({"score_shift": -torch.inf}, {"share_attention": False}):
        with style_aligned(pipeline(kind), references=noised(kind), **settings, **off):
            assert_close(draw(kind), plain, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_the_pipeline(kind):
    plain = draw(kind)
    found = {}
    for first, last in ((0, None), (0, STEPS - 1), (1, 1), (STEPS, None)):
        with style_aligned(pipeline(kind), references=noised(kind), first_step=first, last_step=last):
            found[first, last] = draw(kind)
    assert torch.equal(found[0, None], found[0, STEPS - 1]) and torch.equal(found[STEPS, None], plain)
    assert (moved(found[1, 1], plain) > 1e-4).all() and (moved(found[1, 1], found[0, None]) > 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind):
    pipe = copy.copy(pipeline(kind))
    pipe.register_modules(transformer=copy.deepcopy(network(kind)).bfloat16())
    reference = noised(kind, pipe=pipe)
    plain = draw(kind, pipe=pipe)
    with style_aligned(pipe, references=reference, last_step=0):
        found, again = draw(kind, pipe=pipe), draw(kind, pipe=pipe)
    assert torch.equal(found, again) and (moved(found.float(), plain.float()) > 1e-3).all()


# Making references


@pytest.mark.parametrize("kind", KINDS)
def test_inversion_is_drawn_back(kind):
    how = {"num_inference_steps": STEPS, "fixed_point_iterations": 80, **size(kind)}
    found = flow_invert(pipeline(kind), [picture(0), picture(1)], ["a house", "a boat of wood"], **how)
    told = UNGUIDED[kind] | ({"guidance_scale": 1.0} if kind in ("flux", "flux2") else {})
    noise = found.noise.clone()
    if kind == "flux2":  # whose pipeline takes patches that are not a sequence yet
        noise = noise.unflatten(1, (ROWS, COLUMNS)).permute(0, 3, 1, 2)
    drawn = pipeline(kind)(
        prompt=list(found.prompts), latents=noise, num_inference_steps=STEPS, output_type="latent", **size(kind), **told
    ).images
    assert_close(drawn, found.clean, atol=1e-4, rtol=1e-4)
    plain = flow_invert(pipeline(kind), picture(0), "a house", num_inference_steps=STEPS, **size(kind))
    assert plain.method == "flow inversion" and (plain.noise - found.noise[:1]).abs().max() > 1e-3
    assert_close(found[0].latents, flow_invert(pipeline(kind), picture(0), "a house", **how).latents,
                 atol=1e-4, rtol=1e-4)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_noised_references_lie_on_a_line(kind):
    found = noised(kind, 2)
    sigmas = pipeline(kind).scheduler.sigmas.view(-1, 1, *[1] * (found.clean.ndim - 1))
    noise = (found.latents[1] - (1 - sigmas[1]) * found.clean) / sigmas[1]
    assert_close(found.latents, (1 - sigmas) * found.clean + sigmas * noise, atol=1e-5, rtol=1e-5)
    assert abs(noise.std() - 1) < 0.2 and (noise[0] - noise[1]).abs().max() > 0.1
    again = noised_reference(pipeline(kind), picture(1), "a boat of wood", seed=1, num_inference_steps=STEPS,
                             **size(kind))  # fmt: skip
    assert_close(again.latents[:, 0], found.latents[:, 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_read(kind, tmp_path):
    made = noised(kind, 2)
    read = Trajectory.load(made.save(tmp_path / "reference.safetensors"))
    assert read.digest() == made.digest() and read.prompts == made.prompts and read.seed == made.seed
    with style_aligned(pipeline(kind), references=made):
        found = draw(kind)
    with style_aligned(pipeline(kind), references=read):
        assert torch.equal(draw(kind), found)
    assert Trajectory.join([made, read]).prompts == made.prompts + read.prompts
    if kind not in ("qwen", "z-image"):  # their texts may be of several lengths
        assert len(Trajectory.join([read, noised(kind)])) == 3
    data = (tmp_path / "reference.safetensors").read_bytes()
    for damaged in (data[: len(data) // 2], data.replace(b'\\"method\\"', b'\\"meth0d\\"'), b"nothing"):
        (tmp_path / "damaged.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError) as caught:
            Trajectory.load(tmp_path / "damaged.safetensors")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [flow_invert, noised_reference])
def test_sizes_that_are_no_patches_are_refused_before_work(kind, make, monkeypatch):
    monkeypatch.setattr(pipeline(kind).vae, "encode", lambda *_: pytest.fail("work has begun"))
    wrong = size(kind) | {"width": size(kind)["width"] + 1}
    with pytest.raises(ValueError, match="multiple") as caught:
        make(pipeline(kind), picture(0), "a house", num_inference_steps=2, **wrong)
    assert "\n" not in str(caught.value)


def test_a_branch_without_text_is_refused():
    made = noised("sd3")
    bare = replace(made, embeddings={name: x for name, x in made.embeddings.items() if name.startswith("cond")})
    with style_aligned(pipeline("sd3"), references=bare), pytest.raises(ValueError, match="guidance branch 'uncond'"):
        draw("sd3", guided=True)
    with style_aligned(pipeline("sd3"), references=bare):
        draw("sd3")


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_inversion_is_named(kind):
    with pytest.raises((TypeError, ValueError), match="flow_invert") as caught:
        cd.ddim_invert(pipeline(kind), picture(0), "a house", num_inference_steps=2)
    assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="ddim_invert"):
        flow_invert(tiny_sd15(), picture(0), "a house", num_inference_steps=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_of_another_model_is_refused(kind):
    other = KINDS[KINDS.index(kind) - 1]
    with pytest.raises(ValueError, match="another model"), style_aligned(pipeline(kind), references=noised(other)):
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_asking_a_pipeline_leaves_no_hook(kind, monkeypatch):
    pipe = pipeline(kind)
    hooks = lambda: len(pipe.transformer._forward_pre_hooks)  # noqa: E731
    noised(kind)
    assert hooks() == 0
    monkeypatch.setattr(type(pipe), "encode_prompt", lambda *_, **__: (_ for _ in ()).throw(OSError("no encoder")))
    with pytest.raises(OSError, match="no encoder"):
        noised(kind)
    assert hooks() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_that_draws_nothing_is_not_believed(kind, monkeypatch):
    pipe = pipeline(kind)
    monkeypatch.setattr(type(pipe), "__call__", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match="transformer"):
        given_by(pipe, architecture_of(pipe), {"prompt": "a house"})


OFFLOADS = {
    "layer by layer": lambda module: cpu_offload(module, execution_device=torch.device("cpu")),
    "whole": lambda module: cpu_offload_with_hook(module, execution_device="cpu"),
}


@pytest.mark.parametrize("offload", OFFLOADS.values(), ids=OFFLOADS)
@pytest.mark.parametrize("kind", KINDS)
def test_offloaded_pipelines(kind, offload):
    expected = noised(kind)
    with style_aligned(pipeline(kind), references=expected):
        found = draw(kind)
    pipe = copy.copy(pipeline(kind))
    net, vae = copy.deepcopy(network(kind)), copy.deepcopy(pipe.vae)
    pipe.register_modules(transformer=net, vae=vae)
    for part in (net, vae):
        offload(part)
    made = noised(kind, pipe=pipe)
    assert torch.equal(made.latents, expected.latents)
    with style_aligned(pipe, references=made):
        for _ in range(2):
            assert_close(draw(kind, pipe=pipe), found, atol=1e-5, rtol=1e-5)


def test_flux_with_an_ip_adapter():
    pipe = copy.copy(pipeline("flux"))
    net = copy.deepcopy(network("flux"))
    torch.manual_seed(3)
    weights = {}
    for key in range(1):  # of the block with two streams
        for part in ("to_k_ip", "to_v_ip"):
            weights |= {f"{key}.{part}.weight": torch.randn(32, 24), f"{key}.{part}.bias": torch.randn(32)}
    projection = {"proj.weight": torch.randn(4 * 24, 8), "proj.bias": torch.randn(96), "norm.weight": torch.ones(24),
                  "norm.bias": torch.zeros(24)}  # fmt: skip
    net._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}], low_cpu_mem_usage=False)
    pipe.register_modules(transformer=net)
    reference = noised("flux", pipe=pipe)
    assert torch.equal(reference.latents, noised("flux").latents)
    flow_invert(pipe, picture(0), "a house", num_inference_steps=2, **size("flux"))
    images = {f"{branch}ip_adapter_image_embeds": [torch.randn(3, 1, 8)] for branch in ("", "negative_")}
    plain, without = draw("flux", pipe=pipe, **images), draw("flux")
    with style_aligned(pipe, references=reference):
        found, again = draw("flux", pipe=pipe, **images), draw("flux", pipe=pipe, **images)
    with style_aligned(pipe):
        as_row = draw("flux", pipe=pipe, **images)
    assert (moved(plain, without) > 1e-3).all() and (moved(found, plain) > 1e-3).all() and torch.equal(found, again)
    assert_close(as_row[0], plain[0], atol=1e-5, rtol=1e-5)
