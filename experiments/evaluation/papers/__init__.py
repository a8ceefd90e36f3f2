"""The papers' protocols, on any model: drawn unit by unit, resumable, split over processes (:mod:`..units`).

:mod:`.sets` has StyleAligned's sets, :mod:`.references` its reference pictures, :mod:`.blends` Z-SAMB's blends of
several references, :mod:`.three_settings` Context Diffusion's C+P, C and P, and :mod:`.control_scales` layout against
style.
"""
