"""Groups of scenes that share a style draw, also as a torch dataset."""

import numpy as np
from einops import rearrange

from ..checks import LIMITS, check_count
from ..signatures import checked
from .scene import Rendering, Scene, Style, render

LAST_GROUP = LIMITS["seed"] // 1000 - 1
MOST = 1000  # scenes of a group: their seeds are 1000 times the group's, and up
GROUP = 4  # pictures of one style draw in the training set


@checked
def context_group(seed: int, size: int = 4, *, style: Style | None = None, **fixed) -> list[Rendering]:
    """Draw ``size`` different scenes in one style; keyword arguments fix fields of the scenes, as in ``Scene.draw``.

    The style is drawn from the seed unless given. Raises ``ValueError`` for a size below 1.
    """
    if size < 1:
        raise ValueError(f"A group has at least one scene; got size={size}.")
    check_count("size", size, MOST)
    style = style or Style.draw(seed)
    return [render(Scene.draw(seed * 1000 + i, **fixed), style, seed * 1000 + i) for i in range(size)]


class TinyScenes:
    """``groups`` groups of four pictures as a map-style ``torch.utils.data.Dataset``.

    Item ``i`` is picture ``i % 4`` of group ``i // 4``: a dict of ``image`` (3, 128, 128) float32 in [-1, 1], ``depth``
    (1, 128, 128) and ``edges`` (1, 128, 128) float32 in [0, 1], ``segments`` (128, 128) int64, ``caption`` and the
    indices ``object``, ``background``, ``style``, ``group``. Training uses groups from 0 up; groups from
    ``HELD_OUT`` = 1,000,000 up are never trained on.
    """

    HELD_OUT = 1_000_000

    @checked
    def __init__(self, groups: int, first_group: int = 0):
        self.groups = check_count("groups", groups, LAST_GROUP)
        self.first_group = check_count("first_group", first_group, LAST_GROUP - self.groups, low=0)

    def __len__(self) -> int:
        return self.groups * GROUP

    @checked
    def rendering(self, index: int) -> Rendering:
        """The picture with its ground truth, before it becomes tensors."""
        if not 0 <= index < len(self):
            raise IndexError(f"Index {index} is outside a dataset of {len(self)} pictures.")
        group = self.first_group + index // GROUP
        seed = group * 1000 + index % GROUP
        return render(Scene.draw(seed), self.style(group), seed)

    @staticmethod
    @checked
    def style(group: int) -> Style:
        """The style draw that a group shares."""
        return Style.draw(group)

    def __getitem__(self, index: int) -> dict:
        import torch

        drawn = self.rendering(index)
        return {
            "image": rearrange(torch.from_numpy(drawn.pixels), "height width rgb -> rgb height width") / 127.5 - 1,
            "depth": torch.from_numpy(drawn.depth)[None],
            "edges": torch.from_numpy(drawn.edges.astype(np.float32))[None],
            "segments": torch.from_numpy(drawn.segments.astype(np.int64)),
            "caption": drawn.caption,
            **labels(drawn),
            "group": self.first_group + index // GROUP,
        }


@checked
def labels(drawn: Rendering) -> dict[str, int]:
    """Class indices of a picture's object, background and style."""
    from .vocabulary import BACKGROUNDS, OBJECTS, STYLES

    return {
        "object": OBJECTS.index(drawn.scene.object),
        "background": BACKGROUNDS.index(drawn.scene.background),
        "style": STYLES.index(drawn.style.name),
    }
