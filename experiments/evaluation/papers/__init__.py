"""The papers' protocols on any model: drawn unit by unit, stopped and taken up at will, split over processes.

``python -m experiments.evaluation.papers --help`` says how; :mod:`.units` does the work, one module each holds
StyleAligned's sets (:mod:`.sets`), its reference pictures (:mod:`.references`), blends of several references
(:mod:`.blends`), and Context Diffusion's three settings (:mod:`.contexts`).
"""
