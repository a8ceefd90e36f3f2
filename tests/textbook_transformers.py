"""AlignedGen and Untwisting RoPE for the tests, written out: one attention processor in place of the models' own.

AdaIN by mean and variance, the references' keys rotated by the model's own embedder at ids that are *moved*, a softmax
over concatenated keys, and a factor found over every pair of places. Nothing of :mod:`context_diffusion` is used.
"""

import math
from dataclasses import dataclass, field

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from tiny_transformers import output

SHARED = {"flux": "single_transformer_blocks.", "flux2": "single_transformer_blocks.", "z-image": "layers."}
IMAGE_FIRST = ("sd3", "z-image")


def phases(kind: str, network, grid: tuple[int, int], right: int = 0) -> torch.Tensor | None:
    """The rotation of a picture's tokens as complex numbers, (tokens, pairs), when it is moved to the right."""
    if kind == "sd3":
        return None
    rows, columns = (torch.arange(side) for side in grid)
    if kind == "qwen":  # counted from the middle
        rows, columns = (along - (side - side // 2) for along, side in zip((rows, columns), grid, strict=True))
    places = torch.cartesian_prod(rows, columns + right)
    if kind == "qwen":
        embedder, pairs = network.pos_embed, [width // 2 for width in network.pos_embed.axes_dim]
        tables = zip(embedder.pos_freqs.split(pairs, dim=1), embedder.neg_freqs.split(pairs, dim=1), strict=True)
        (frames, _), *axes = tables
        found = [frames[:1].expand(len(places), -1)]
        for axis, (ahead, behind) in enumerate(axes):
            found.append(torch.stack([(ahead if at >= 0 else behind)[at] for at in places[:, axis].tolist()]))
        return torch.cat(found, dim=1)
    if kind == "z-image":  # a caption of up to 32 words, then the picture
        return network.rope_embedder(torch.cat([torch.full((len(places), 1), SEQ_MULTI_OF + 1), places], dim=1))
    ids = torch.cat([torch.zeros(len(places), 1), places, torch.zeros(len(places), int(kind == "flux2"))], dim=1)
    cos, sin = network.pos_embed(ids)
    return torch.complex(cos[:, ::2], sin[:, ::2])


def untwisting(widths, high: float, low: float, beta: float = 2.0) -> torch.Tensor:
    """A factor for each pair: of rows and columns (axes 1 and 2) from high to low, of other axes 1."""
    found = []
    for axis, width in enumerate(widths):
        for pair in range(width // 2):
            found.append(high + (low - high) * (pair / (width // 2 - 1)) ** beta if axis in (1, 2) else 1.0)
    return torch.tensor(found, dtype=torch.float32)


def mean_score(own: torch.Tensor, theirs: torch.Tensor, scales: torch.Tensor | float = 1.0) -> float:
    """The score of features that are all ones, over every place of a picture and every place of a reference."""
    return sum(((p.conj() * r).real * scales).mean().item() for p in own for r in theirs) / (len(own) * len(theirs))


def rotated(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """(rows, tokens, heads, dim) rotated by (tokens, pairs) or (rows, tokens, pairs)."""
    return apply_rotary_emb(x, by if by.ndim == 3 else by[None], use_real=False)


@dataclass
class Textbook:
    """What one call does: "record" the references, or "share" what was recorded."""

    kind: str
    network: torch.nn.Module
    grid: tuple[int, int]
    of_reference: tuple[int, int]
    placement: str = "beside"
    weights: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    shift: float = 0.0
    adain_queries: bool = True
    adain_keys: bool = True
    adain_values: bool = False
    high: float = 0.25
    low: float = 1.0
    phase: str = "record"
    kept: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind == "sd3":
            return
        config, embedder = self.network.config, getattr(self.network, "pos_embed", None)
        widths = config.axes_dims_rope if embedder is not None else config.axes_dims
        own, theirs = (phases(self.kind, self.network, grid) for grid in (self.grid, self.of_reference))
        # the first column of the reference follows the last one of the picture
        start = {"qwen": lambda side: -(side - side // 2)}.get(self.kind, lambda side: 0)
        right = start(self.grid[1]) + self.grid[1] - start(self.of_reference[1])
        self.there = phases(self.kind, self.network, self.of_reference, right if self.placement == "beside" else 0)
        scales = (
            untwisting(widths, self.high, self.low) if self.placement == "untwisted" else torch.ones(sum(widths) // 2)
        )
        self.scales = scales * mean_score(own, theirs) / mean_score(own, self.there, scales)

    def adain(self, x: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        """(rows, tokens, heads, dim) with the moments of (references, tokens, heads, dim), counted by the weights."""
        weights = torch.tensor(self.weights).view(-1, 1, 1)
        means, variances = of.mean(dim=1), of.var(dim=1)
        mean = (weights * means).sum(dim=0)
        var = (weights * (variances + (means - mean) ** 2)).sum(dim=0)
        own_mean, own_var = x.mean(dim=1, keepdim=True), x.var(dim=1, keepdim=True)
        return (x - own_mean) / (own_var + 1e-5).sqrt() * (var + 1e-5).sqrt() + mean

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None,
        freqs_cis=None, encoder_hidden_states_mask=None,
    ):  # fmt: skip
        heads, image_first = 2, self.kind in IMAGE_FIRST
        split = lambda x: x.unflatten(-1, (heads, -1))  # noqa: E731
        rest = None
        if hasattr(attn, "to_qkv_mlp_proj"):  # which gives mask and rotation as its second and third
            encoder_hidden_states, attention_mask, image_rotary_emb = None, encoder_hidden_states, attention_mask
            projected = attn.to_qkv_mlp_proj(hidden_states)
            q, k, v, rest = projected.split([attn.inner_dim] * 3 + [projected.shape[-1] - 3 * attn.inner_dim], dim=-1)
            q, k, v = split(q), split(k), split(v)
        else:
            q, k, v = (split(project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        joined = encoder_hidden_states is not None
        length = hidden_states.shape[1] if joined else 0
        if joined:
            projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            words = [split(project(encoder_hidden_states)) for project in projections]
            words[:2] = attn.norm_added_q(words[0]), attn.norm_added_k(words[1])
            pairs = zip((q, k, v), words, strict=True)
            q, k, v = (torch.cat([x, w] if image_first else [w, x], dim=1) for x, w in pairs)
        if encoder_hidden_states_mask is not None:
            everywhere = torch.ones(hidden_states.shape[:2], dtype=torch.bool)
            attention_mask = torch.cat([encoder_hidden_states_mask, everywhere], dim=1)
        tokens = q.shape[1]
        recording = self.phase == "record"
        count = math.prod(self.of_reference if recording else self.grid)
        image = slice(0, count) if image_first else slice(tokens - count, tokens)
        by = freqs_cis
        if isinstance(image_rotary_emb, tuple) and self.kind == "qwen":
            by = torch.cat([image_rotary_emb[1], image_rotary_emb[0]])
        elif image_rotary_emb is not None:
            by = torch.complex(image_rotary_emb[0][:, ::2], image_rotary_emb[1][:, ::2])
        if recording:
            self.kept[id(attn)] = q[:, image], k[:, image], v[:, image]
        elif id(attn) in self.kept:
            of_q, of_k, of_v = self.kept[id(attn)]
            q, k, v = q.clone(), k.clone(), v.clone()
            if self.adain_queries:
                q[:, image] = self.adain(q[:, image], of_q)
            if self.adain_keys:
                k[:, image] = self.adain(k[:, image], of_k)
            if self.adain_values:
                v[:, image] = self.adain(v[:, image], of_v)
        if by is not None:
            q, k = rotated(q, by), rotated(k, by)
        bias = torch.zeros(len(q), tokens)
        if attention_mask is not None:
            bias = torch.zeros(len(q), tokens).masked_fill(~attention_mask.bool(), -math.inf)
        if not recording and id(attn) in self.kept:
            of_q, of_k, of_v = self.kept[id(attn)]
            if by is not None:
                of_k = rotated(of_k, self.there) * self.scales.repeat_interleave(2)
            for weight, key, value in zip(self.weights, of_k, of_v, strict=True):
                k = torch.cat([k, self.scale * key.expand(len(q), -1, -1, -1)], dim=1)
                v = torch.cat([v, value.expand(len(q), -1, -1, -1)], dim=1)
                bias = torch.cat([bias, torch.full((len(q), len(key)), self.shift + math.log(weight))], dim=1)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1]) + bias[:, None, None]
        out = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(dim=-1), v).flatten(2)
        if rest is not None:
            return attn.to_out(torch.cat([out, attn.mlp_act_fn(rest)], dim=-1))
        if not joined:
            return attn.to_out[0](out) if getattr(attn, "to_out", None) is not None else out
        words_out = out[:, length:] if image_first else out[:, : tokens - length]
        picture = out[:, :length] if image_first else out[:, tokens - length :]
        if not getattr(attn, "context_pre_only", None):
            words_out = attn.to_add_out(words_out)
        return attn.to_out[0](picture), words_out


def textbook(kind, network, given, reference, grid, of_reference, **how) -> torch.Tensor:
    """The aligned prediction for ``given``, by what the layers make of ``reference``."""
    book = Textbook(kind, network, grid, of_reference, **how)
    layers = [
        module
        for name, module in network.named_modules()
        if name.rpartition(".")[2] in ("attn", "attn2", "attention")
        and name.startswith(SHARED.get(kind, ""))
        and "refiner" not in name
    ]
    found = [layer.processor for layer in layers]
    try:
        for layer in layers:
            layer.processor = book
        with torch.no_grad():
            output(network, reference)
            book.phase = "share"
            return output(network, given)
    finally:
        for layer, processor in zip(layers, found, strict=True):
            layer.processor = processor
