"""Context Diffusion: the layout of a query image, the style of context images, the meaning of a prompt."""

from .contexts import AdapterContexts, ColourContexts, TokenContexts
from .model import ContextDiffusion
from .projector import ContextProjector
from .request import CheckedRequest, Request

__all__ = [
    "AdapterContexts",
    "CheckedRequest",
    "ColourContexts",
    "ContextDiffusion",
    "ContextProjector",
    "Request",
    "TokenContexts",
]
