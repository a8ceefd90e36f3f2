"""Every lesson keeps its tensors on one device: shown without a GPU, on a stand-in that follows a GPU's rules."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nbformat
import numpy as np
import pytest
import stand_in_device
import torch
import torch.nn.functional as F

from experiments.publishing.execution import execute

FOLDER = Path(__file__).parent.parent / "notebooks"
NOT_HERE = "12_training"  # accelerate, which trains there, knows CUDA and its like by name, and not the stand-in
LESSONS = [path for path in sorted(FOLDER.glob("*.ipynb")) if path.stem != NOT_HERE]
ALWAYS = ("13_style_alignment_in_a_transformer",)  # the others take minutes each: DEVICE=1 asks for them
PLUG_IN = (
    f"import sys; sys.path.append({str(Path(__file__).parent)!r})\nimport stand_in_device\nstand_in_device.plug_in();"
)


@pytest.fixture(scope="module")
def there():
    """A function that evaluates an expression in a process with the stand-in, which this one must do without."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=stand_in_device.plug_in) as pool:
        yield lambda source: pool.submit(evaluate, source).result()


def evaluate(source: str, device: str = stand_in_device.NAME) -> object:
    """The value of an expression of ``c``, on the CPU, and ``d``, its copy on the device; tensors come as arrays."""
    c = torch.arange(6.0).reshape(2, 3)
    found = eval(source, globals() | {"F": F, "c": c, "d": c.to(device)})
    return found.cpu().numpy() if isinstance(found, torch.Tensor) else found


@pytest.mark.parametrize(
    "source",
    [
        "d + c",
        "c @ d.T",
        "torch.cat([c, d])",
        "torch.stack([c.sum(), d.sum()])",
        "d.add_(c)",
        "c.sum().add_(d.sum())",
        "F.embedding(torch.tensor([0, 1]), d)",
        "F.linear(c, torch.randn(4, 3).to(d.device))",
        "torch.inference_mode()(F.linear)(c, torch.randn(4, 3).to(d.device))",
        "F.scaled_dot_product_attention(d[None], c[None], c[None])",
        "c[torch.tensor([0]).to(d.device)].add(d[0])",
        "torch.testing.assert_close(c, d)",
    ],
)
def test_tensors_of_two_devices_do_not_mix(there, source):
    with pytest.raises((RuntimeError, AssertionError), match="device"):
        there(source)


@pytest.mark.parametrize(
    "source", ["d.numpy()", "np.asarray(d)", "torch.randn(3, device=d.device, generator=torch.Generator())"]
)
def test_neither_numpy_nor_a_generator_of_the_cpu_takes_them(there, source):
    with pytest.raises((TypeError, RuntimeError), match="device"):
        there(source)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("d * torch.tensor(2.0)", "c * 2"),
        ("d[torch.tensor([1, 0])]", "c[[1, 0]]"),
        ("d.masked_fill(d > 3, 0).T.reshape(6)", "c.masked_fill(c > 3, 0).T.reshape(6)"),
        ("torch.zeros_like(c).copy_(d)", "c"),
        ("f'{d.mean():.2f} {d[1].tolist()}'", "f'{c.mean():.2f} {c[1].tolist()}'"),
        ("torch.inference_mode()(F.softmax)(d, -1)", "c.softmax(-1)"),
        ("F.scaled_dot_product_attention(d[None], d[None], d[None])", "F.scaled_dot_product_attention(*[c[None]] * 3)"),
        ("trained(d)", "trained(c)"),
    ],
)
def test_what_is_allowed_gives_the_cpus_numbers(there, source, expected):
    found, wanted = there(source), evaluate(expected, "cpu")
    assert found == wanted if isinstance(wanted, str) else np.allclose(found, wanted, rtol=1e-5, atol=1e-6)


def trained(x: torch.Tensor) -> torch.Tensor:
    """A network's answers after three steps of AdamW, on the device of its input."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(3, 8), torch.nn.GroupNorm(2, 8), torch.nn.SiLU(), torch.nn.Linear(8, 2)
    network = torch.nn.Sequential(*layers).to(x.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
    return network(x).detach()


def test_a_pipeline_goes_there_by_itself_and_draws_the_picture_of_the_cpu(there):
    on_device, here = there("drawn(None)"), drawn("cpu")
    assert (on_device[0], here[0]) == (stand_in_device.NAME, "cpu")
    assert np.abs(on_device[1].astype(int) - here[1].astype(int)).max() <= 1


def drawn(device: str | None) -> tuple[str, np.ndarray]:
    """The kind of device a pipeline is on, and what it draws in two steps."""
    import context_diffusion as cd

    pipe = cd.load_pipeline(device=device)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a boat among hills", num_inference_steps=2, generator=cd.generators(0, 1)).images[0]
    return pipe.device.type, np.asarray(image)


@pytest.mark.lesson
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_keeps_its_tensors_on_one_device(path):
    if path.stem not in ALWAYS and "DEVICE" not in os.environ:
        pytest.skip("DEVICE=1 asks for the lessons that take minutes")
    notebook = nbformat.read(path, as_version=4)
    found = f"import torch; assert torch.device(here.device).type == {stand_in_device.NAME!r}"
    cells = [nbformat.v4.new_code_cell(source) for source in (PLUG_IN, found)]
    notebook.cells = [cells[0], *notebook.cells, cells[1]]
    execute(notebook, path.parent)
