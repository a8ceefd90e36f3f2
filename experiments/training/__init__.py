"""One short, resumable script for each offline component.

    python -m experiments.training.vae --steps 8000

Each keeps its checkpoint, its weights, its loss curve and its record in ``build/training/NAME/``, and goes on from
there after an interruption. ``python -m experiments.publishing.weights NAME`` then puts the weights where the library
finds them.
"""
