"""One short, resumable script for each offline component; ``make train`` runs them in order.

    python -m experiments.training.vae --steps 8000

Each writes its weights to ``data/checkpoints/tiny-scenes/``, its loss curve and a sample sheet to ``figures/``, and
what it needs to go on after an interruption to ``build/training/``.
"""
