"""CLIP's text encoder (Radford et al. 2021, section 2.4): a causal transformer over the tokens of the prompt.

Stable Diffusion uses the vectors of *all* tokens, not just the one that CLIP compares with images.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .attention import Attention

ACTIVATIONS = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),  # OpenAI's CLIP: SD 1.x
    "gelu": F.gelu,  #                                       OpenCLIP: SD 2.x
}


class MLP(nn.Module):
    """Two linear layers, applied to each token separately."""

    def __init__(self, width: int, hidden: int, activation: str):
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.activation = ACTIVATIONS[activation]
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return self.contract(self.activation(self.expand(x)))


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Causal: a token sees itself and what comes before it."""

    def __init__(self, width: int, heads: int, hidden: int, activation: str, eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attention = Attention(width, heads, bias=True)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = MLP(width, hidden, activation)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        x = x + self.attention(self.norm1(x), causal=True)
        return x + self.mlp(self.norm2(x))


class TextEncoder(nn.Module):
    """Token ids to one vector per token. Argument names are those of the folder's ``config.json``."""

    FIXED = {"attention_dropout": 0.0}

    def __init__(
        self,
        *,
        vocab_size: int = 49408,
        hidden_size: int = 768,
        intermediate_size: int = 3072,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        max_position_embeddings: int = 77,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
    ):
        super().__init__()
        if hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act must be one of {sorted(ACTIVATIONS)}; the configuration says {hidden_act!r}.")
        self.token_embedding = nn.Embedding(vocab_size, hidden_size)
        self.position_embedding = nn.Embedding(max_position_embeddings, hidden_size)
        self.layers = nn.ModuleList(
            EncoderLayer(hidden_size, num_attention_heads, intermediate_size, hidden_act, layer_norm_eps)
            for _ in range(num_hidden_layers)
        )
        self.final_norm = nn.LayerNorm(hidden_size, layer_norm_eps)

    def forward(self, ids: Int[Tensor, "batch tokens"], skip: int = 0) -> Float[Tensor, "batch tokens width"]:
        """Encode; ``skip=1`` leaves out the last layer.

        SD 2.x was trained on the second to last of 24 layers. Its published folder holds only 23, so it too is read
        with ``skip=0``; the argument is there to compare (diffusers calls it ``clip_skip``).
        """
        longest = self.position_embedding.num_embeddings
        if ids.shape[1] > longest:
            raise ValueError(f"This text encoder has {longest} positions; it was given {ids.shape[1]} tokens.")
        if not 0 <= skip < len(self.layers):
            raise ValueError(f"skip must be 0 to {len(self.layers) - 1}, to leave at least one layer; got {skip}.")
        x = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        for layer in self.layers[: len(self.layers) - skip]:
            x = layer(x)
        return self.final_norm(x)
