"""Which code scores: a digest of it is a part of what scores depend on, so that corrected scores are computed anew."""

import ast
import hashlib
import inspect
from pathlib import Path

from context_diffusion.files import ROOT

SCORING = (  # all that runs while a unit is scored, besides the protocol's own file; the tests watch what runs
    "context_diffusion/metrics/*.py", "context_diffusion/scenes/*.py", "context_diffusion/checks.py",
    "context_diffusion/control.py", "context_diffusion/encoders.py", "context_diffusion/images.py",
    "context_diffusion/reading.py", "experiments/evaluation/edges_and_depth.py", "experiments/evaluation/finetuned.py",
    "experiments/evaluation/unseen.py", "experiments/evaluation/papers/mixtures.py",
    "experiments/evaluation/papers/prompts.py", "experiments/evaluation/papers/references.py",
    "experiments/evaluation/papers/scorers.py", "experiments/evaluation/styles/held_out.py",
    "experiments/evaluation/styles/scores*.py", "experiments/evaluation/styles/tasks.py",
)  # fmt: skip


def scoring_files(protocol: object) -> list[Path]:
    """The files by whose code a protocol scores."""
    listed = sorted(file for pattern in SCORING for file in ROOT.glob(pattern))
    return [*listed, Path(inspect.getfile(type(protocol)))]


def code_of_scores(protocol: object) -> str:
    """Eight hexadecimal digits of the code by which a protocol scores; its comments and docstrings do not count."""
    whole = hashlib.sha256()
    for file in dict.fromkeys(scoring_files(protocol)):
        whole.update(f"{file.name}\n{bare(file.read_text(encoding='utf-8'))}\n".encode())
    return whole.hexdigest()[:8]


def bare(source: str) -> str:
    """Python without comments, docstrings and line breaks that mean nothing.

    >>> print(bare('def double(x):  # of anything\\n    "Twice."\\n    return (2 *\\n      x)'))
    def double(x):
        return 2 * x
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
