"""How good the models are: one protocol to a file, every number with its interval.

    python -m experiments.evaluation offline            # the scores of the offline models -> figures/offline/
    python -m experiments.evaluation text layout        # two of them
    python -m experiments.evaluation papers             # the papers' tables               -> figures/evaluation/

:mod:`.harness` runs a protocol, :mod:`.bench` holds the model under test and the networks that score it, :mod:`.report`
what was found. Every picture, query and context shows scenes that no training saw, seeds are consecutive, and nothing
is cherry-picked. The scores are those of :mod:`context_diffusion.metrics`.
"""
