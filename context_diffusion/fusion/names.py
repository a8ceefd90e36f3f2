"""Find the weights of a source by a short name, a folder, or a repository id of the hub."""

import re
from collections.abc import Mapping
from pathlib import Path

from ..checks import hint


def find_weights(name: str | Path, table: Mapping[str, str], what: str, offline: str, trainer: str) -> str:
    """Say where a model lives: a folder or a repository id; ``table`` maps short names to either.

    ``what`` names the kind of model in messages; ``offline`` is the short name of the one that the command ``trainer``
    makes. Raises ``FileNotFoundError`` if the folder holds no model, ``ValueError`` for an unknown name.
    """
    location = Path(table.get(str(name), str(name))).expanduser()
    if location.is_dir():
        if not (location / "config.json").is_file():
            raise FileNotFoundError(f"{location} holds no model: it has no config.json.")
        return str(location)
    if str(name) == offline:
        raise FileNotFoundError(f"The offline {what} is not at {location}; `{trainer}` trains it.")
    if str(name) in table or re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(name)):
        return table.get(str(name), str(name))
    raise ValueError(
        f"There is no {what} {str(name)!r}: give {' or '.join(table)}, an existing folder, or "
        f"owner/name{hint(name, table)}"
    )
