"""The field's scores with error bars: text, style, layout, palette, distribution, leakage, word errors.

Each score takes any number of pictures (or embeddings), streams over them, and returns an :class:`Estimate`: value,
standard error, 95 % interval and n. Networks are passed in as functions, so nothing here loads a model:
``set_consistency(sets_of_images, encoder.encode_images)`` is the papers' "DINO".
"""

from .distribution import FeatureMoments, frechet_distance, kernel_distance
from .estimates import Estimate, estimate_difference, estimate_mean, estimate_rate
from .inputs import CLIP_PREPROCESS, DINO_PREPROCESS, Preprocess
from .layout import depth_rank_correlation, depth_rank_correlations, edge_f1, edge_f1_scores
from .leakage import classified, content_leakage, object_accuracy
from .multistyle import blend_score, blend_scores, style_shares, weighted_multi_style, weighted_multi_style_scores
from .palette import Palette, earth_movers_distance, palette_distance, palette_distances, palette_of, srgb_to_lab
from .similarity import (
    pairwise_scores,
    pairwise_similarity,
    reference_scores,
    reference_similarity,
    set_consistency,
    text_image_scores,
    text_image_similarity,
)
from .words import word_error_rate

__all__ = [
    "CLIP_PREPROCESS", "DINO_PREPROCESS", "Estimate", "FeatureMoments", "Palette", "Preprocess",
    "blend_score", "blend_scores", "classified", "content_leakage", "depth_rank_correlation",
    "depth_rank_correlations", "earth_movers_distance", "edge_f1", "edge_f1_scores", "estimate_difference",
    "estimate_mean", "estimate_rate", "frechet_distance", "kernel_distance", "object_accuracy",
    "pairwise_scores", "pairwise_similarity", "palette_distance", "palette_distances", "palette_of",
    "reference_scores", "reference_similarity", "set_consistency", "srgb_to_lab", "style_shares",
    "text_image_scores", "text_image_similarity", "weighted_multi_style", "weighted_multi_style_scores",
    "word_error_rate",
]  # fmt: skip
