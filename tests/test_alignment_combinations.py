"""``style_aligned`` with whatever else is attached to a pipeline: it aligns, and is never silently off.

Two invariants hold in every combination: *the reference row inside the block is the plain picture*, and *the second
call in a block equals the first*. Beside them the other rows differ from the plain ones, a reference from outside does
what the same picture does as row 0, and after the block all is as before.
"""

import contextvars
import copy
import io
import itertools
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from aligning import PROMPTS, draw, noise, recorded
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from tiny import load_tiny_ip_adapter, tiny_control, tiny_sd15
from worlds import scenes_folder

from context_diffusion import ContextDiffusion
from context_diffusion.alignment.aligner import ReferenceCache, style_aligned
from context_diffusion.alignment.trajectory import Trajectory, describe_model
from context_diffusion.pipelines import as_pipeline

Draw = Callable[..., torch.Tensor]


def fresh(make=tiny_sd15):
    """A calm pipeline of its own: its noise prediction changes slowly with the latent."""
    pipe = make(fresh=True)
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.1)
    return pipe


def apart(got: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The largest difference within each image."""
    return (got - other).abs().amax(dim=(1, 2, 3))


def same(got: torch.Tensor, other: torch.Tensor, within: float = 1e-5) -> bool:
    return bool((apart(got, other) <= within).all())


def differs(got: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((apart(got, other) > 1e-3).all())


def trajectory_of(pipe, draw: Draw) -> Trajectory:
    """The first image of the batch as a reference from outside: its latents at each step of plain sampling."""
    latents = [noise()[:1]]
    keep = lambda _pipe, _step, _time, tensors: latents.append(tensors["latents"][:1].clone()) or {}  # noqa: E731
    draw(pipe, callback_on_step_end=keep)
    cond, uncond = pipe.encode_prompt(PROMPTS[0], "cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    steps, products = pipe.scheduler.timesteps, pipe.scheduler.alphas_cumprod.double()
    return Trajectory(
        torch.stack(latents),
        steps.float(),
        torch.cat([products[steps], products[:1]]),
        {"cond": cond, "uncond": uncond},
        (PROMPTS[0],),
        model=describe_model(pipe),
    )


@cache
def lora(seed: int) -> dict[str, torch.Tensor]:
    """A random LoRA of the tiny U-Net's attention."""
    torch.manual_seed(seed)
    unet = tiny_sd15(fresh=True).unet
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False))
    return {f"unet.{name}": weight for name, weight in get_peft_model_state_dict(unet).items()}


def load_lora(pipe, name: str = "one", seed: int = 1) -> None:
    pipe.load_lora_weights(dict(lora(seed)), adapter_name=name)


# Each kind of attachment, by what is done to the pipeline. The order is that in which users do it.


def two_loras(pipe) -> None:
    load_lora(pipe, "one", 1)
    load_lora(pipe, "two", 2)
    two_weights(pipe)


def two_weights(pipe) -> None:
    pipe.set_adapters(["one", "two"], adapter_weights=[0.7, 0.4])


def ip_adapter(pipe) -> None:
    load_tiny_ip_adapter(pipe)
    pipe.set_ip_adapter_scale(0.6)


def offload_again_and_again(pipe) -> None:
    """As ``enable_model_cpu_offload`` does: its hook is taken off and put on after every call."""
    kind, hook = type(pipe), None

    class Offloading(kind):
        def maybe_free_model_hooks(self) -> None:
            nonlocal hook
            remove_hook_from_module(self.unet)
            _, hook = cpu_offload_with_hook(self.unet, execution_device="cpu")

    Offloading.__name__ = Offloading.__qualname__ = kind.__name__
    pipe.__class__ = Offloading
    pipe.maybe_free_model_hooks()


def offload_in_groups(pipe, **how) -> None:
    cpu = torch.device("cpu")
    apply_group_offloading(pipe.unet, onload_device=cpu, offload_device=cpu, **how)


def compile_wrapped(pipe) -> None:
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def compile_a_block(pipe) -> None:
    pipe.unet.mid_block = torch.compile(pipe.unet.mid_block, backend="eager")


NOTHING: Callable = lambda pipe: None  # noqa: E731
FACTORS: dict[str, dict[str, Callable]] = {
    "lora": {"none": NOTHING, "two": two_loras},
    "adapter": {"none": NOTHING, "ip": ip_adapter},
    "attention": {
        "native": NOTHING,
        "fused": lambda pipe: pipe.fuse_qkv_projections(vae=False),
        "sliced": lambda pipe: pipe.enable_attention_slicing(1),
    },
    "freeu": {"off": NOTHING, "on": lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)},
    "offload": {
        "none": NOTHING,
        "again and again": offload_again_and_again,
        "sequential": lambda pipe: cpu_offload(pipe.unet, execution_device=torch.device("cpu")),
        "leaf groups": lambda pipe: offload_in_groups(pipe, offload_type="leaf_level"),
        "block groups": lambda pipe: offload_in_groups(pipe, offload_type="block_level", num_blocks_per_group=1),
    },
    "control": {"none": NOTHING, "control": NOTHING},
    "sharing": {"default": NOTHING, "group norm": NOTHING, "half": NOTHING},
}
SHARING = {"default": {}, "group norm": {"share_group_norm": True}, "half": {"layers": 0.5, "score_shift": 0.5}}
IMPOSSIBLE = [  # to diffusers: they throw the adapter's processors away
    {"adapter": "ip", "attention": "sliced"},
    {"adapter": "ip", "attention": "fused"},
]


def pairs(combination: dict[str, str]) -> set:
    return set(itertools.combinations(sorted(combination.items()), 2))


def possible(combination: dict[str, str]) -> bool:
    return not any(clash.items() <= combination.items() for clash in IMPOSSIBLE)


def covering() -> Iterator[dict[str, str]]:
    """Few combinations in which every two attachments meet: the best of some random ones, until none is left."""
    chance = random.Random(0)
    everything = [{name: chance.choice(list(kinds)) for name, kinds in FACTORS.items()} for _ in range(6000)]
    candidates = [each for each in everything if possible(each)]
    left = set().union(*map(pairs, candidates))
    while left:
        best = max(candidates[:600], key=lambda each: len(pairs(each) & left))
        if not pairs(best) & left:
            best = max(candidates, key=lambda each: len(pairs(each) & left))
        left -= pairs(best)
        yield best


def name_of(combination: dict[str, str]) -> str:
    plain = {name: next(iter(kinds)) for name, kinds in FACTORS.items()}
    return ", ".join(kind for name, kind in combination.items() if kind != plain[name]) or "nothing"


def attached(combination: dict[str, str]) -> tuple[object, Draw]:
    """A pipeline with everything that the combination names, and how to draw three pictures with it."""
    pipe = fresh(tiny_control if combination["control"] == "control" else tiny_sd15)
    for name, kinds in FACTORS.items():
        kinds[combination[name]](pipe)
    options = {"height": 16, "width": 16}
    if combination["control"] == "control":
        options |= {"image": [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]}
    if combination["adapter"] == "ip":
        options |= {"ip_adapter_image": Image.radial_gradient("L").convert("RGB").resize((32, 32))}

    def drawn(pipe, **more) -> torch.Tensor:
        return draw(pipe, **options, **more)

    return pipe, drawn


@pytest.mark.parametrize("combination", covering(), ids=name_of)
def test_whatever_is_attached(combination):
    pipe, drawn = attached(combination)
    plain, settings = drawn(pipe), SHARING[combination["sharing"]]
    assert same(drawn(pipe), plain)
    with style_aligned(pipe, control_reference=True, **settings):
        rows, again = drawn(pipe), drawn(pipe)
    assert same(rows[:1], plain[:1], within=1e-4) and differs(rows[1:], plain[1:])
    assert same(again, rows)
    assert same(drawn(pipe), plain)
    trajectory, kept = trajectory_of(pipe, drawn), ReferenceCache()
    with style_aligned(pipe, references=trajectory, **settings):
        outside, again = drawn(pipe), drawn(pipe)
    assert differs(outside[1:], plain[1:]) and same(again, outside)
    if combination["control"] == combination["adapter"] == "none":  # a reference from outside meets neither
        assert same(outside[1:], rows[1:], within=1e-4)
    with style_aligned(pipe, references=trajectory, cache=kept, **settings):
        assert same(drawn(pipe), outside) and same(drawn(pipe), outside)
    assert same(drawn(pipe), plain)


# A network that is compiled does not meet hooks that come later; drawing with it plainly is slow here, so it stands
# apart from the other attachments.

COMPILED = {
    "wrapped": compile_wrapped,
    "in place": lambda pipe: pipe.unet.compile(backend="eager"),
    "in regions": lambda pipe: pipe.unet.compile_repeated_blocks(backend="eager", fullgraph=True),
    "a block": compile_a_block,
}


@pytest.fixture
def no_backend() -> Iterator[None]:
    """The backend of attention is one for all networks."""
    yield
    tiny_sd15().unet.set_attention_backend("native")  # it sets the backend of all networks


@pytest.mark.parametrize("backend", ["native", "_native_math", "flex"])
def test_whatever_the_backend_of_attention(backend, no_backend):
    pipe = fresh()
    with style_aligned(pipe):
        expected = draw(pipe)
        pipe.unet.set_attention_backend(backend)  # which the U-Net's processors do not ask
        assert same(draw(pipe), expected)
    with style_aligned(pipe):
        assert same(draw(pipe), expected)


@pytest.fixture
def no_code() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("how", COMPILED)
def test_whatever_is_compiled(how, no_code):
    pipe, trajectory = fresh(), recorded(tiny_sd15)
    load_lora(pipe)
    before = draw(pipe)
    with style_aligned(pipe, layers=0.5):
        expected = draw(pipe)
    with style_aligned(pipe, references=trajectory):
        outside = draw(pipe)
    assert differs(expected[1:], before[1:])
    COMPILED[how](pipe)
    plain = draw(pipe)
    assert same(plain, before, within=1e-4)
    with style_aligned(pipe, layers=0.5):
        assert same(draw(pipe), expected) and same(draw(pipe), expected)
    with style_aligned(pipe, references=trajectory, cache=True):
        assert same(draw(pipe), outside) and same(draw(pipe), outside)
    assert same(draw(pipe), plain)


# What changes between two calls, and whether a kept reference belongs to the network as it is then.


def other_weights(pipe) -> None:
    pipe.unet.load_state_dict({name: weight + 0.02 for name, weight in pipe.unet.state_dict().items()})


def one_step_of_training(pipe) -> None:
    optimizer = torch.optim.SGD(pipe.unet.parameters(), lr=1e-2)
    for weight in pipe.unet.parameters():
        weight.grad = torch.full_like(weight, -1.0)
    optimizer.step()
    optimizer.zero_grad()


def fuse_and_forget(pipe) -> None:
    load_lora(pipe, "three", 3)
    pipe.fuse_lora(components=["unet"])
    pipe.unload_lora_weights()


def round_weights(pipe) -> None:
    pipe.unet.to(torch.bfloat16).to(torch.float32)


CHANGES: dict[str, Callable] = {
    "nothing": NOTHING,
    "a LoRA": load_lora,
    "its weight": lambda pipe: pipe.set_adapters("one", adapter_weights=0.3),
    "a second LoRA": lambda pipe: load_lora(pipe, "two", 2),
    "the second alone": lambda pipe: pipe.set_adapters("two"),
    "both": two_weights,
    "LoRAs switched off": lambda pipe: pipe.disable_lora(),
    "FreeU": lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
    "LoRAs switched on": lambda pipe: pipe.enable_lora(),
    "a LoRA deleted": lambda pipe: pipe.delete_adapters("two"),
    "no FreeU": lambda pipe: pipe.disable_freeu(),
    "LoRAs unloaded": lambda pipe: pipe.unload_lora_weights(),
    "a LoRA fused and forgotten": fuse_and_forget,
    "other weights": other_weights,
    "a step of training": one_step_of_training,
    "rounded weights": round_weights,
    "fused projections": lambda pipe: pipe.fuse_qkv_projections(vae=False),
}
ALIKE = {"nothing", "the second alone", "rounded weights", "fused projections"}


def drawn_after_each_change(block: Callable, inside: bool) -> list[torch.Tensor]:
    """What is drawn after each change of the network, all in one block or each in a block of its own."""
    pipe, drawn = fresh(), []
    with block(pipe) if inside else nullcontext():
        for change in CHANGES.values():
            change(pipe)
            with nullcontext() if inside else block(pipe):
                drawn.append(draw(pipe))
    return drawn


def test_row_zero_follows_each_change_of_the_network():
    plainly = drawn_after_each_change(lambda pipe: nullcontext(), inside=True)
    drawn = drawn_after_each_change(style_aligned, inside=True)
    for name, got, plain in zip(CHANGES, drawn, plainly, strict=True):
        assert same(got[:1], plain[:1], within=1e-4) and differs(got[1:], plain[1:]), name


def test_a_cache_follows_each_change_of_the_network():
    trajectory = Trajectory(**{**vars(recorded(tiny_sd15)), "model": {}})  # or other weights would refuse it
    aligned = partial(style_aligned, references=trajectory)
    expected = drawn_after_each_change(aligned, inside=True)
    for inside in (True, False):
        drawn = drawn_after_each_change(partial(aligned, cache=ReferenceCache()), inside)
        for name, got, right in zip(CHANGES, drawn, expected, strict=True):
            assert same(got, right), (name, inside)
    for name, before, after in zip(list(CHANGES)[1:], expected, expected[1:], strict=False):
        assert name in ALIKE or differs(after, before), name  # or nothing would be proved


def test_a_cache_follows_the_precision_and_the_scale_of_a_lora():
    pipe, trajectory = fresh(), recorded(tiny_sd15)
    load_lora(pipe)
    half = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    calls = [(nullcontext, 1.0), (half, 1.0), (nullcontext, 0.4), (nullcontext, 1.0)]

    def drawn(**options) -> list[torch.Tensor]:
        out = []
        with style_aligned(pipe, references=trajectory, **options):
            for precision, scale in calls:
                with precision():
                    out.append(draw(pipe, cross_attention_kwargs={"scale": scale}))
        return out

    expected = drawn()
    assert all(same(got, right) for got, right in zip(drawn(cache=True), expected, strict=True))
    assert differs(expected[2], expected[0]) and not torch.equal(expected[1], expected[0])


# Threads and contexts.


def in_a_thread(act: Callable):
    """Call in another thread, to the end; return what it returns and raise what it raises."""
    found: list = []

    def run() -> None:
        try:
            found.append(act())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


@contextmanager
def in_the_middle(module: torch.nn.Module, act: Callable, times: int = 3) -> Iterator[list]:
    """Call ``act`` in another thread in the middle of each of the first calls of the network that ``module`` is in."""
    found: list = []
    main = threading.get_ident()

    def meanwhile(*_) -> None:
        if threading.get_ident() == main and len(found) < times:
            found.append(in_a_thread(act))

    hook = module.register_forward_hook(meanwhile)
    try:
        yield found
    finally:
        hook.remove()


def beside(pipe):
    """Another pipeline of the same parts, with a scheduler of its own."""
    other = as_pipeline(pipe)
    other.scheduler = copy.deepcopy(pipe.scheduler)
    return other


def with_adapter():
    pipe = fresh()
    ip_adapter(pipe)
    return pipe, {"ip_adapter_image": Image.radial_gradient("L").convert("RGB").resize((32, 32))}


@pytest.mark.parametrize("options", [{}, {"references": True}, {"references": True, "share_group_norm": True}])
def test_another_thread_draws_plainly_in_the_middle_of_an_aligned_call(options):
    pipe, pictures = with_adapter()
    if "references" in options:
        options = options | {"references": recorded(tiny_sd15)}
    plain, other = draw(pipe, **pictures), beside(pipe)
    with style_aligned(pipe, **options):
        expected = draw(pipe, **pictures)
        with in_the_middle(pipe.unet.mid_block, lambda: draw(other, **pictures)) as found:
            assert torch.equal(draw(pipe, **pictures), expected)
        assert torch.equal(in_a_thread(lambda: draw(other, **pictures)), plain)
    assert len(found) > 1 and all(torch.equal(each, plain) for each in found)
    assert differs(expected[1:], plain[1:])


def test_two_threads_with_a_block_each_share_a_network_and_a_cache():
    pipe, kept = fresh(), ReferenceCache()
    other, first = beside(pipe), recorded(tiny_sd15)
    second = Trajectory(**{**vars(first), "latents": first.latents.flip(-1)})

    def aligned(pipe, trajectory, cache=False) -> torch.Tensor:
        with style_aligned(pipe, references=trajectory, cache=cache):
            return draw(pipe)

    expected, theirs = aligned(pipe, first), aligned(pipe, second)
    assert differs(theirs, expected)
    for module in (pipe.unet.mid_block, pipe.unet.conv_in):
        with in_the_middle(module, lambda: aligned(other, second, kept)) as found:
            assert torch.equal(aligned(pipe, first, kept), expected)
        assert len(found) == 3 and all(torch.equal(each, theirs) for each in found)
    assert torch.equal(aligned(pipe, first, kept), expected)


def test_a_compiled_network_stays_aligned_when_another_thread_leaves_its_block(no_code):
    pipe = fresh()
    with style_aligned(pipe):
        expected = draw(pipe)
    plain, other = draw(pipe), fresh()
    pipe.unet.compile(backend="eager")
    draw(pipe)
    opened, left = threading.Event(), threading.Event()

    def second_block() -> torch.Tensor:
        with style_aligned(pipe):
            opened.set()
            left.wait(60)
            return draw(pipe)

    found: list = []
    thread = threading.Thread(target=lambda: found.append(second_block()))
    with style_aligned(other):
        thread.start()
        opened.wait(60)
    left.set()
    thread.join()
    assert same(found[0], expected)
    assert same(draw(pipe), plain, within=1e-4)
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_a_thread_that_carries_the_context_along_is_in_the_block():
    pipe = fresh()
    plain = draw(pipe)
    with style_aligned(pipe):
        expected = draw(pipe)
        context = contextvars.copy_context()  # as asyncio.to_thread does
        assert torch.equal(in_a_thread(lambda: context.run(draw, pipe)), expected)
        assert torch.equal(in_a_thread(lambda: draw(pipe)), plain)
        with pytest.raises(RuntimeError, match="opened on this network in another context"):
            contextvars.Context().run(draw, pipe)


def test_two_threads_with_one_context_diffusion_draw_what_each_draws_alone():
    model = ContextDiffusion.from_pretrained(scenes_folder(), device="cpu")

    def picture(steps: int, seed: int):
        return model(prompt="a cat", num_inference_steps=steps, seed=seed, progress=False)

    def meanwhile():
        return picture(5, 2)

    mine, theirs = picture(4, 1), meanwhile()
    with in_the_middle(model.pipeline.unet.mid_block, meanwhile) as found:
        assert picture(4, 1).tobytes() == mine.tobytes()
    assert all(each.tobytes() == theirs.tobytes() for each in found)


# Copies.

COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda unet: pickle.loads(pickle.dumps(unet)),
    "torch.save": lambda unet: torch.load(io.BytesIO(_saved(unet)), weights_only=False),
}


def _saved(unet) -> bytes:
    file = io.BytesIO()
    torch.save(unet, file)
    return file.getvalue()


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("options", [{}, {"share_group_norm": True}], ids=["attention", "group norm"])
def test_a_copy_made_inside_a_block_is_plain_for_ever(how, options):
    pipe = fresh()
    plain, copies = draw(pipe), []
    take = lambda *_: copies.append(COPIES[how](pipe.unet)) or {}  # noqa: E731
    with style_aligned(pipe, **options):
        expected = draw(pipe, callback_on_step_end=take)
        take()
        for each in copies:
            other = beside(pipe)
            other.unet = each
            assert torch.equal(draw(other), plain)
        assert torch.equal(draw(pipe), expected)
    for each in copies:
        other.unet = each
        assert torch.equal(draw(other), plain)
        with style_aligned(other, **options):  # and can be aligned like any other
            assert torch.equal(draw(other), expected)
    assert torch.equal(draw(pipe), plain)


def test_a_copy_of_a_pipeline_made_inside_a_block_is_plain():
    pipe = fresh()
    plain = draw(pipe)
    with style_aligned(pipe):
        other = copy.deepcopy(pipe)
        assert torch.equal(draw(other), plain)
    assert torch.equal(draw(other), plain)


# Gradients and interrupts.


def test_gradient_checkpointing_is_refused_and_gradients_go_through():
    pipe = fresh()
    given = (noise(2), 500, torch.randn(2, 16, 32))
    pipe.unet.enable_gradient_checkpointing()
    pipe.unet.train()
    with style_aligned(pipe, branches=("cond",)):
        with pytest.raises(RuntimeError, match="Gradient checkpointing runs layers again"):
            pipe.unet(*given)
        with torch.no_grad():
            expected = pipe.unet(*given).sample
        pipe.unet.disable_gradient_checkpointing()
        got = pipe.unet(*given).sample
        got.sum().backward()
    assert same(got.detach(), expected, within=1e-4)
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in pipe.unet.parameters())
    assert pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_k.weight.grad.any()


@pytest.mark.parametrize("at", ["to_k", "to_out.0", "norm", "resnet"])
@pytest.mark.parametrize("count", [1, 2], ids=["first", "second"])  # of the references, of the targets
@pytest.mark.parametrize("outside", [False, True], ids=["row zero", "references"])
def test_drawing_goes_on_after_an_interrupt_in_a_layer(at, count, outside):
    pipe = fresh()
    middle = pipe.unet.mid_block.attentions[0]
    layer = {"norm": middle.norm, "resnet": pipe.unet.mid_block.resnets[1].conv1}.get(at)
    layer = middle.transformer_blocks[0].attn1.get_submodule(at) if layer is None else layer
    calls: list = []

    def interrupt(*_) -> None:
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt

    plain = draw(pipe)
    sequence = [torch.randn(4, 2, 8, 8) for _ in range(3)]
    attended = F.scaled_dot_product_attention(*sequence)
    options = {"references": recorded(tiny_sd15) if outside else None, "share_group_norm": True}
    with style_aligned(pipe, **options):
        expected = draw(pipe)
        hook = layer.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            draw(pipe)
        hook.remove()
        assert torch.equal(F.scaled_dot_product_attention(*sequence), attended)  # nobody else's attention is touched
        with torch.device("meta"):  # a mode that came after the interrupt stays where it is
            assert torch.empty(1).is_meta
        with torch.device("cpu"):
            assert torch.equal(draw(pipe), expected)
        with pytest.raises(KeyboardInterrupt):
            calls.clear()
            layer.register_forward_pre_hook(interrupt)
            draw(pipe)
        layer._forward_pre_hooks.popitem()
    assert not torch.overrides._get_current_function_mode_stack()
    assert torch.equal(draw(pipe), plain)
