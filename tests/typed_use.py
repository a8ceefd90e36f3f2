"""What a type checker makes of the public names in somebody else's code: mypy reads this file, and nothing runs it."""

from typing import assert_type

from PIL import Image
from torch import Generator, Tensor

import context_diffusion as cd


def pictures(model: cd.ContextDiffusion) -> list[Image.Image]:
    requests = [cd.Request(prompt="a boat", seed=seed) for seed in range(3)]
    drawn = model.draw([*requests, cd.Request("query.png", ["a.png"], layout="depth")], batch_size=2)
    assert_type(drawn, list[Image.Image])
    assert_type(model(None, "a.png", num_images=1), Image.Image | list[Image.Image])
    return drawn


def styles(pipe: object, picture: Image.Image) -> cd.Trajectory:
    assert_type(cd.generators(0, 3), list[Generator])
    trajectory = cd.ddim_invert(pipe, picture, prompt="a cat", guidance_scale=2.0)
    with cd.style_aligned(pipe, references=[trajectory], weights=[1.0], settings=cd.StyleSettings(score_shift=0.5)):
        pass
    return trajectory


def images(path: str) -> Tensor:
    assert_type(cd.load_image(path), Image.Image)
    cd.save_image(cd.image_grid([cd.load_image(path), cd.canny_map(path)], columns=2), "out.png")
    return cd.load_image_as_tensor(path)


def words() -> str:
    prompt = cd.fuse_prompts(["a boat", cd.AudioSource("boat.flac"), cd.Only(cd.ImageSource("a.png"), "style")])
    return f"{prompt.text} {cd.__version__}"


def refused() -> None:
    cd.Request(prompt=3)  # type: ignore[arg-type]
    cd.generators("zero", 3)  # type: ignore[arg-type]
    cd.load_images("a.png")  # type: ignore[attr-defined]
