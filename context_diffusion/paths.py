"""Where the repository keeps things."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
TINY_SCENES = DATA / "checkpoints" / "tiny-scenes"
