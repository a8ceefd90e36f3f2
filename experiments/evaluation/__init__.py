"""How good the offline models are: one protocol to a file, every number with its interval.

    python -m experiments.evaluation.offline            # all of them -> figures/offline/
    python -m experiments.evaluation.offline --only text,layout

Every picture, query and context is of scenes that no training saw, seeds are consecutive, and nothing is picked. The
scores are those of :mod:`context_diffusion.metrics`.
"""
