"""``style_aligned`` on transformers, one call of the network at a time: the textbook's, and never silently off."""

import copy
import threading
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_processor import JointAttnProcessor2_0
from peft import LoraConfig
from textbook_transformers import phases, textbook
from tiny import tiny_sd15
from tiny_transformers import COLUMNS, KINDS, ROWS, inputs, network, output, some_rows
from torch.testing import assert_close

from context_diffusion.alignment import StyleSettings, Trajectory, style_aligned
from context_diffusion.alignment.networks import architecture_of, rows_of
from context_diffusion.alignment.positions import placed
from context_diffusion.alignment.trajectory import describe_model

GRID = (ROWS, COLUMNS)
ROTARY = tuple(kind for kind in KINDS if kind != "sd3")


def piped(net) -> SimpleNamespace:
    """What stands for a pipeline in a loop of one's own."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    return SimpleNamespace(transformer=net, scheduler=scheduler, unet=None)


def aligned(kind: str, given=None, branches=("cond",), net=None, **settings) -> torch.Tensor:
    net = network(kind) if net is None else net
    with torch.no_grad(), style_aligned(piped(net), branches=branches, **settings):
        return output(net, inputs(kind) if given is None else given)


def plain(kind: str, given=None) -> torch.Tensor:
    with torch.no_grad():
        return output(network(kind), inputs(kind) if given is None else given)


def by_the_book(kind: str, **how) -> torch.Tensor:
    given = inputs(kind)
    reference, targets = some_rows(given, slice(0, 1)), some_rows(given, slice(1, None))
    shared = textbook(kind, network(kind), targets, reference, GRID, GRID, **how)
    return torch.cat([plain(kind, reference), shared])


HOW = {
    "as it is": ({}, {}),
    "values too": ({"adain_values": True}, {"adain_values": True}),
    "queries alone": ({"adain_keys": False}, {"adain_keys": False}),
    "louder": ({"score_scale": 1.3, "score_shift": 0.7}, {"scale": 1.3, "shift": 0.7}),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", KINDS)
def test_aligned_as_in_the_textbook(kind, how):
    ours, theirs = HOW[how]
    found, expected = aligned(kind, **ours), by_the_book(kind, **theirs)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert ((found - plain(kind))[1:].abs().flatten(1).amax(dim=1) > 1e-3).all()


@pytest.mark.parametrize("placement", ["beside", "same", "untwisted"])
@pytest.mark.parametrize("kind", ROTARY)
def test_placed_as_in_the_textbook(kind, placement):
    # the time is 700: of ten steps from 1000, the fourth; scales have run a third of their way
    steps = piped(None).scheduler.timesteps.tolist()
    done = min(range(10), key=lambda k: abs(steps[k] - 700)) / 9
    scales = {"high": 0.25 + 0.5 * done, "low": 1.0 + 0.4 * done}
    found = aligned(kind, placement=placement)
    assert_close(found, by_the_book(kind, placement=placement, **scales), atol=1e-5, rtol=1e-5)


def test_placements_differ():
    for kind in ROTARY:
        beside, same, untwisted = (aligned(kind, placement=each) for each in ("beside", "same", "untwisted"))
        assert min((beside - same).abs().max(), (same - untwisted).abs().max()) > 1e-4
        assert torch.equal(beside, aligned(kind))


# Properties


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_row_is_plain_and_all_others_differ(kind):
    found, without = aligned(kind), plain(kind)
    assert_close(found[0], without[0], atol=1e-6, rtol=1e-6)
    assert ((found - without)[1:].abs().flatten(1).amax(dim=1) > 1e-3).all()


@pytest.mark.parametrize("kind", KINDS)
def test_off_is_plain(kind):
    off = {"adain_queries": False, "adain_keys": False}
    without = plain(kind)
    assert torch.equal(aligned(kind, share_attention=False, **off), without)
    assert torch.equal(aligned(kind, layers=0.0), without)
    assert torch.equal(aligned(kind, first_step=9), without)
    for shift in (-torch.inf, -60.0):
        assert_close(aligned(kind, score_shift=shift, **off), without, atol=1e-6, rtol=1e-6)
    alone = some_rows(inputs(kind), slice(1, 2))  # a reference without pictures
    assert torch.equal(aligned(kind, alone), plain(kind, alone))


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_call_is_the_first_and_nothing_is_left_behind(kind):
    net, given, before = network(kind), inputs(kind), plain(kind)
    processors = {name: module.processor for name, module in net.named_modules() if hasattr(module, "processor")}
    with torch.no_grad(), style_aligned(piped(net), branches=("cond",)):
        first, second = output(net, given), output(net, given)
    assert torch.equal(first, second) and torch.equal(plain(kind), before)
    assert all(net.get_submodule(name).processor is found for name, found in processors.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_does_not_depend_on_its_batch(kind):
    given = inputs(kind, rows=3)
    together = aligned(kind, given)
    pair = aligned(kind, some_rows(given, slice(0, 2)))
    assert_close(together[:2], pair, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sd3", "z-image"])
def test_stacked_branches_are_each_branch_alone(kind):
    given = inputs(kind, rows=4)
    stacked = aligned(kind, given, branches=("uncond", "cond"))
    each = [aligned(kind, some_rows(given, rows)) for rows in (slice(0, 2), slice(2, 4))]
    assert_close(stacked, torch.cat(each), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_of_ones_own_says_its_branches(kind):
    with pytest.raises(ValueError, match="pass branches=") as caught:
        aligned(kind, branches=None)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot be split"):
        aligned(kind, branches=("uncond", "cond"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_call_leaves_no_trace(kind, error):
    net, given, expected = network(kind), inputs(kind), aligned(kind)
    armed = [True]

    def strike(*_):
        if armed.pop() if armed else False:
            raise error

    with torch.no_grad(), style_aligned(piped(net), branches=("cond",)) as aligner:
        last = list(aligner.attentions.values())[-1]
        inside = [module for module in last.modules() if isinstance(module, torch.nn.Linear)][-1]
        handle = inside.register_forward_pre_hook(strike)
        try:
            with pytest.raises(error):
                output(net, given)
        finally:
            handle.remove()
        assert torch.equal(output(net, given), expected)
    assert_close(plain(kind)[0], expected[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_other_threads_and_copies_draw_as_ever(kind):
    net, given, without = network(kind), inputs(kind), plain(kind)
    found = []

    def draw():
        with torch.no_grad():
            found.append(output(net, given))

    with style_aligned(piped(net), branches=("cond",)):
        thread = threading.Thread(target=draw)
        thread.start()
        thread.join()
        twin = copy.deepcopy(net)
        with torch.no_grad():
            found.append(output(twin, given))
    assert torch.equal(found[0], without) and torch.equal(found[1], without)


def test_sd3_fused():
    net = copy.deepcopy(network("sd3"))
    net.fuse_qkv_projections()
    net.transformer_blocks[0].attn2.set_processor(JointAttnProcessor2_0())  # the fused one fails without text
    with torch.no_grad():
        without = output(net, inputs("sd3"))  # not the unfused prediction: the fused processor leaves out the norms
    found = aligned("sd3", net=net)
    assert_close(found[0], without[0], atol=1e-6, rtol=1e-6)
    assert ((found - without)[1:].abs().flatten(1).amax(dim=1) > 1e-3).all()


@pytest.mark.parametrize("kind", ["flux", "flux2", "qwen", "z-image"])
def test_fused_attentions(kind):
    net = copy.deepcopy(network(kind))
    fused = [module for module in net.modules() if hasattr(module, "fuse_projections")]
    assert fused
    for module in fused:
        module.fuse_projections()
    assert_close(aligned(kind, net=net), aligned(kind), atol=1e-5, rtol=1e-5)


LORA = {
    "flux": (["to_q", "to_k", "to_v", "add_q_proj"], "joint_attention_kwargs"),
    "flux2": (["to_q", "to_k", "to_v", "to_qkv_mlp_proj"], "joint_attention_kwargs"),
    "sd3": (["to_q", "to_k", "to_v"], "joint_attention_kwargs"),
    "qwen": (["to_q", "to_k", "to_v"], "attention_kwargs"),
    "z-image": (["to_q", "to_k", "to_v"], None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_lora(kind):
    targets, argument = LORA[kind]
    net, given = copy.deepcopy(network(kind)), inputs(kind)
    net.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False))
    scales = (None,) if argument is None else (None, 0.4)
    for scale in scales:
        told = given if scale is None else given | {argument: {"scale": scale}}
        with torch.no_grad():
            without = output(net, told)
        with torch.no_grad(), style_aligned(piped(net), branches=("cond",)):
            found, again = output(net, told), output(net, told)
        assert_close(found[0], without[0], atol=1e-6, rtol=1e-6)
        assert torch.equal(found, again)
        assert ((found - without)[1:].abs().flatten(1).amax(dim=1) > 1e-3).all()
        assert (without - plain(kind)).abs().max() > 1e-3
        reference, targets = (some_rows(given, rows) for rows in (slice(0, 1), slice(1, None)))
        targets |= {name: value for name, value in told.items() if name not in given}
        made = trajectory(kind, reference)
        with torch.no_grad(), style_aligned(piped(net), branches=("cond",), references=made, cache=True):
            outside, cached = output(net, targets), output(net, targets)
        assert_close(outside, found[1:], atol=1e-5, rtol=1e-5)
        assert torch.equal(outside, cached)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["native", "_native_math", "flex"])
def test_attention_backends_are_right_or_refused(kind, backend, request):
    net = copy.deepcopy(network(kind))
    net.set_attention_backend(backend)
    request.addfinalizer(lambda: net.set_attention_backend("native"))  # it sets the backend of all networks
    dispatched = any(getattr(module.processor, "_attention_backend", None) is not None
                     for module in net.modules() if hasattr(module, "processor"))  # fmt: skip
    assert dispatched == (kind != "sd3")  # whose processors know no backends
    if backend == "flex" and dispatched:
        with pytest.raises(RuntimeError, match="native attention backend"):
            aligned(kind, net=net)
        return
    assert_close(aligned(kind, net=net), aligned(kind), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_found_although_times_are_rounded(kind):
    net, given = copy.deepcopy(network(kind)).bfloat16(), inputs(kind)
    half = {name: [x.bfloat16() for x in value] if isinstance(value, list) and isinstance(value[0], torch.Tensor) else
            value.bfloat16() if isinstance(value, torch.Tensor) and value.is_floating_point() and "ids" not in name
            else value for name, value in given.items()}  # fmt: skip
    with torch.no_grad():
        without = output(net, half)
    step = 3  # of ten from 1000: about 700
    on, off, late = (aligned(kind, half, net=net, first_step=first, last_step=last)
                     for first, last in ((step, step), (step + 1, None), (0, step - 1)))  # fmt: skip
    assert torch.equal(off, without) and torch.equal(late, without)
    assert ((on - without)[1:].abs().flatten(1).amax(dim=1) > 1e-3).all()
    assert (on[0] - without[0]).abs().max() < 0.05


MEANINGLESS = {
    "full_attention": True, "share_group_norm": True, "negative_query": True, "swap_attention": 0.5,
    "subject_scale": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", MEANINGLESS)
@pytest.mark.parametrize("kind", KINDS)
def test_settings_without_a_meaning_are_refused(kind, name):
    with pytest.raises(ValueError, match=name.partition("_")[0]) as caught:
        aligned(kind, **{name: MEANINGLESS[name]})
    assert "\n" not in str(caught.value)


def test_placement_is_refused_without_rotary_positions():
    for pipe in (piped(network("sd3")), tiny_sd15()):
        with pytest.raises(ValueError, match="rotary positions"), style_aligned(pipe, placement="same"):
            pass


def test_unknown_networks_are_refused_by_name():
    class Unknown(torch.nn.Module):
        pass

    for pipe, word in (
        (SimpleNamespace(transformer=Unknown(), unet=None), "Unknown"),
        (SimpleNamespace(transformer=None), "SimpleNamespace"),
        (SimpleNamespace(), "SimpleNamespace"),
    ):
        with pytest.raises(TypeError, match="FluxTransformer2DModel") as caught, style_aligned(pipe):
            pass
        assert word in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_chosen_by_name_and_by_share(kind):
    with style_aligned(piped(network(kind)), layers=0.5) as half, torch.no_grad():
        chosen = set(half.attentions)
    with style_aligned(piped(network(kind))) as whole:
        assert chosen < set(whole.attentions)
        assert not any("refiner" in name for name in whole.attentions)
    if kind in ("flux", "flux2"):
        with style_aligned(piped(network(kind)), layers="transformer_blocks") as double:
            assert list(double.attentions) == ["transformer_blocks.0.attn"]
        found = aligned(kind, layers="transformer_blocks")
        assert_close(found[0], plain(kind)[0], atol=1e-6, rtol=1e-6)
        assert (found[1:] - plain(kind)[1:]).abs().max() > 1e-3


def test_gradients_flow_through_shared_layers():
    for kind in KINDS:
        given = inputs(kind, rows=2)
        name = "x" if kind == "z-image" else "hidden_states"
        rows = [row.clone().requires_grad_() for row in given[name]]
        told = given | {name: rows if kind == "z-image" else torch.stack(rows)}
        with style_aligned(piped(network(kind)), branches=("cond",)):
            found = output(network(kind), told)
        found[1].sum().backward()
        assert all(row.grad.abs().max() > 0 for row in rows)  # the target's output hears the reference
        assert_close(found.detach(), aligned(kind, given), atol=1e-5, rtol=1e-5)


# References from outside the batch


def trajectory(kind: str, given: dict, branch: str = "cond") -> Trajectory:
    """Inputs as a reference at the one step that they are for."""
    pipe = piped(network(kind))
    architecture = architecture_of(pipe)
    rows = given[architecture.sample]
    latents = torch.stack([row.squeeze(1) for row in rows]) if isinstance(rows, list) else rows
    time = min(pipe.scheduler.timesteps, key=lambda step: abs(step - 700))
    own = {name: value for name, value in given.items() if name in architecture.per_image}
    embeddings = {name: x for each in own for name, x in rows_of(given[each], f"{branch}.{each}").items()}
    embeddings |= {name.replace("uncond", "cond"): x for name, x in embeddings.items()}  # every reference has a prompt
    common = given.keys() - own.keys() - {architecture.sample, architecture.timestep}
    return Trajectory(
        torch.stack([latents, latents]), time[None].float(), torch.tensor([0.3, 1.0]).double(), embeddings,
        ("",) * len(latents), shared={name: given[name] for name in common}, model=describe_model(pipe),
    )  # fmt: skip


@pytest.mark.parametrize("placement", ["beside", "same", "untwisted"])
@pytest.mark.parametrize("grid", [GRID, (3, 8), (6, 2)], ids=["of one size", "wide", "tall"])
@pytest.mark.parametrize("kind", KINDS)
def test_references_as_in_the_textbook(kind, grid, placement):
    if kind == "sd3" and placement != "beside":
        pytest.skip("it has no rotary positions")
    given, reference = inputs(kind), inputs(kind, rows=2, grid=grid, seed=5)
    steps = piped(None).scheduler.timesteps.tolist()
    done = min(range(10), key=lambda k: abs(steps[k] - 700)) / 9
    weights = (0.3, 0.7)
    how = {"placement": placement, "high": 0.25 + 0.5 * done, "low": 1.0 + 0.4 * done, "scale": 1.2, "weights": weights}
    expected = textbook(kind, network(kind), given, reference, GRID, grid, **how)
    settings = {"score_scale": 1.2} | ({} if kind == "sd3" else {"placement": placement})
    for branch in ("cond", "uncond"):
        made = trajectory(kind, reference, branch)
        for cache in (False, True):
            found = aligned(kind, given, (branch,), references=made, weights=weights, cache=cache, **settings)
            assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert ((expected - plain(kind)).abs().flatten(1).amax(dim=1) > 1e-3).all()


@pytest.mark.parametrize("kind", ROTARY)
def test_no_place_is_taken_twice(kind):
    """Each place of a picture and of a reference beside it turns by other angles."""
    for of_reference in (GRID, (3, 8), (6, 2)):
        settings, net = StyleSettings(), network(kind)
        architecture = architecture_of(piped(net))
        rotary = architecture.rotary(net)
        put = placed(rotary, settings, GRID, of_reference, architecture.centred, 0.0)
        own = phases(kind, net, GRID)
        theirs = phases(kind, net, of_reference) * torch.exp(1j * put.angles).to(own.dtype)
        assert torch.cdist(torch.view_as_real(own).flatten(1), torch.view_as_real(theirs).flatten(1)).min() > 0.1
        step = rotary.angles(right=1)  # the reference's first column is a step away from the picture's last
        edge = own.unflatten(0, GRID)[0, -1] * torch.exp(1j * step).to(own.dtype)
        top = 0 if kind != "qwen" else (GRID[0] - GRID[0] // 2) - (of_reference[0] - of_reference[0] // 2)
        edge = edge * torch.exp(1j * rotary.angles(0, down=top)).to(own.dtype)
        assert_close(theirs[0], edge, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["flux", "flux2", "qwen"])
def test_pictures_to_edit_in_the_sequence_are_refused(kind):
    given = inputs(kind)
    given["hidden_states"] = torch.cat([given["hidden_states"]] * 2, dim=1)
    if kind == "qwen":
        given["img_shapes"] = [[(1, *GRID), (1, *GRID)]] * 3
    else:
        other = given["img_ids"].clone()
        other[..., 0] = 1
        given["img_ids"] = torch.cat([given["img_ids"], other], dim=-2)
    plain(kind, given)
    with pytest.raises(ValueError, match="one picture in the sequence"):
        aligned(kind, given)
