"""Figures by their manifest, cards, and the step from build/ to data/checkpoints/."""
