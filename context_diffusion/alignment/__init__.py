"""StyleAligned and its kin: pictures that agree in style because they attend to a reference while they are drawn."""

from .aligner import StyleAligner, style_aligned
from .blending import BLENDS, blend_trajectories, linear, slerp, weighted_slerp
from .equations import Moments, Reference, adain, mix_moments, moments, shared_attention
from .flow import flow_invert
from .hooks import is_style_aligned
from .inversion import ddim_invert, noised_reference
from .networks import choose_layers, self_attentions
from .reference_pass import ReferenceCache
from .settings import StyleSettings
from .subject import subject_map, subject_mask
from .trajectory import Trajectory

__all__ = [
    "BLENDS", "Moments", "Reference", "ReferenceCache", "StyleAligner", "StyleSettings", "Trajectory", "adain",
    "blend_trajectories", "choose_layers", "ddim_invert", "flow_invert", "is_style_aligned", "linear", "mix_moments",
    "moments", "noised_reference", "self_attentions", "shared_attention", "slerp", "style_aligned", "subject_map",
    "subject_mask", "weighted_slerp",
]  # fmt: skip
