"""The build backend of this repository: setuptools for ``pip install -e .``, and a refusal of everything else.

Lessons, the offline models and the data live beside the package and not inside it, so a wheel would hold half of what
is needed.
"""

from setuptools.build_meta import (  # noqa: F401 - the hooks of an editable installation
    build_editable,
    get_requires_for_build_editable,
    prepare_metadata_for_build_editable,
)

SENTENCE = (
    "context_diffusion is used from a clone, which holds its lessons, models and data: "
    "run `pip install -e .` in it, or `make demo`, which sets up everything."
)


def refuse(*_: object, **__: object) -> None:
    """End the build with the one sentence that helps."""
    raise SystemExit(SENTENCE)


# pip asks these before it downloads a single dependency.
get_requires_for_build_wheel = get_requires_for_build_sdist = build_wheel = build_sdist = refuse
