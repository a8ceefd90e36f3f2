"""Where the repository keeps things, paths as people type them, and outputs that are there whole or not at all."""

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
TINY_SCENES = DATA / "checkpoints" / "tiny-scenes"
TINY_FUSION = DATA / "checkpoints" / "tiny-fusion"

ROOM = 2**20  # bytes that a disk must have free to count as not full
ABANDONED = 24 * 3600  # seconds without a change, after which a file that cannot be locked counts as left over


def as_path(path: object, what: str = "A path") -> Path:
    """Return a path that the system understands, with ``~`` as the home folder; ``what`` begins the sentence if not.

    Raises ``TypeError`` for what is no path, ``ValueError`` for one that is empty or cannot be a name.

    >>> as_path("~").is_absolute()
    True
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"{what} is a text or a pathlib.Path, not {' '.join(repr(path).split()):.80}.")
    text = os.fsdecode(path)
    if not text:
        raise ValueError(f"{what} is empty; name a file or a folder.")
    try:
        encodable = "\0" not in text and bool(os.fsencode(text))
    except UnicodeEncodeError:
        encodable = False
    if not encodable:
        raise ValueError(f"{what} holds a character that no file name may have: {text!r:.80}.")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # "~somebody" who is not known here is a name like any other
        return Path(text)


def shown_path(path: str | os.PathLike) -> str:
    r"""Show a path in a sentence of one line, whatever characters its names have.

    >>> shown_path("a\nb.png")
    'a\\nb.png'
    """
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(path))
    return text if len(text) <= 200 else f"{text[:80]}...{text[-80:]}"


def check_output(path: object, suffixes: Collection[str] = (), what: str = "The output") -> Path:
    """Return the path of a file that can be written, or say in one sentence why not, before any work is done.

    The suffix is one of ``suffixes``, if there are any. The folder need not exist yet: it is not made, but tried out
    where its nearest ancestor is. ``what`` begins the sentence. Raises ``TypeError`` or ``ValueError``.
    """
    target = as_path(path, what)
    if suffixes and target.suffix.lower() not in suffixes:
        known = ", ".join(sorted(suffixes))
        raise ValueError(f"{what} {target.name!r:.80} has a suffix that cannot be written: take one of {known}.")
    try:
        _check_file(target, what)
        _try_out(_folder_to_be(target.parent, what), target.suffix)
    except OSError as error:
        raise ValueError(_cannot_write(target, error, what)) from error
    return target


def check_output_folder(path: object, what: str = "The output") -> Path:
    """Return the path of a folder in which files can be written, or say why not; as :func:`check_output` does."""
    folder = as_path(path, what)
    try:
        _try_out(_folder_to_be(folder, what), "")
    except OSError as error:
        raise ValueError(_cannot_write(folder, error, what)) from error
    return folder


@contextmanager
def written_whole(path: str | bytes | os.PathLike) -> Iterator[Path]:
    """Give a temporary path of the same suffix, which becomes ``path`` at the end of the block, or vanishes with it.

    So a file is there whole or not at all, also after an exception, an interrupt or a power failure. What a killed
    writer of the same ``path`` left is swept away. Raises ``ValueError`` for a path that cannot be written, ``OSError``
    with one sentence if the disk is full.
    """
    target = as_path(path, "The output")
    try:
        _check_file(target, "The output")
        _folder_to_be(target.parent, "The output")
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        temporary, handle = _temporary(target)
    except OSError as error:
        raise ValueError(_cannot_write(target, error)) from error
    try:
        yield temporary
        _to_disk(temporary)
        temporary.chmod(0o644)
        temporary.replace(target)
        _to_disk(target.parent)
    except Exception as error:  # what encoders raise differs; that the disk is full is the cause of all of it
        _check_room(target, error)
        raise
    finally:
        temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


@contextmanager
def folder_written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary folder, which takes the place of the folder ``path`` at the end of the block, as above.

    A system renames no folder onto a full one: for a moment the old one is beside it. What dies in that moment is put
    back by the next call.
    """
    folder = check_output_folder(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    before = folder.with_name(f".{folder.name}.before")
    if before.exists() and not folder.exists():
        before.rename(folder)
    sweep(folder)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{_stem(folder)}.part-", suffix=folder.suffix))
    handle = None if fcntl is None else os.open(temporary, os.O_RDONLY)
    try:
        if handle is not None:
            _lock(handle)
        yield temporary
        temporary.chmod(0o755)
        for part in (*temporary.rglob("*"), temporary):
            _to_disk(part)
        if folder.exists():
            shutil.rmtree(before, ignore_errors=True)
            folder.rename(before)
        temporary.rename(folder)
        _to_disk(folder.parent)
        shutil.rmtree(before, ignore_errors=True)
    except Exception as error:
        _check_room(folder, error)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def sweep(path: Path) -> None:
    """Remove the temporary files (or folders) of ``path`` whose writers are dead."""
    name = re.compile(rf"\.{re.escape(_stem(path))}\.part-\w+{re.escape(path.suffix)}")
    for entry in list(os.scandir(path.parent)):
        if name.fullmatch(entry.name):
            with suppress(OSError):  # another process sweeps it as well
                handle = os.open(entry.path, os.O_RDONLY)
                try:
                    if _lock(handle) or time.time() - os.fstat(handle).st_mtime > ABANDONED:
                        shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
                finally:
                    os.close(handle)


def _temporary(target: Path) -> tuple[Path, int | None]:
    """Make the temporary file of a target, and hold a lock on it that dies with its writer."""
    while True:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{_stem(target)}.part-", suffix=target.suffix)
        if fcntl is None:  # Windows renames no file that is open
            os.close(handle)
            return Path(name), None
        _lock(handle)
        if os.path.exists(name):  # else somebody swept it between the two lines above
            return Path(name), handle
        os.close(handle)


def _stem(path: Path) -> str:
    return path.stem[:40]  # so that the name of the temporary file is never the one that is too long


def _lock(handle: int) -> bool:
    """Say whether nobody else holds the file; the system lets go of a lock when its process ends, however it ends."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held by its writer, or a network disk without locks
        return False
    return True


def _check_file(target: Path, what: str) -> None:
    """Refuse what is there and no file; raises ``OSError`` for a name that is too long."""
    if target.is_dir():
        raise ValueError(f"{what} names a file, and {shown_path(target)} is a folder.")
    if target.exists() and not target.is_file():
        raise ValueError(f"{what} names a file, and {shown_path(target)} is a device or a pipe.")


def _folder_to_be(folder: Path, what: str) -> Path:
    """Return the nearest folder that is there; raise for a name on the way to it that cannot be made."""
    missing = []
    while not os.path.lexists(folder):
        missing.append(folder.name)
        folder = folder.parent
    if not folder.is_dir():
        raise ValueError(f"{what} cannot be written: {shown_path(folder)} is not a folder.")
    for name in missing:
        with suppress(FileNotFoundError):
            os.lstat(folder / name)  # raises OSError for a name that is too long
    return folder


def _try_out(folder: Path, suffix: str) -> None:
    """Write a little into a folder and remove it again."""
    with tempfile.TemporaryFile(dir=folder, prefix=".probe-", suffix=suffix) as probe:  # without a name on Linux
        probe.write(bytes(4096))
        probe.flush()
    if _is_full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_full(folder: Path, error: Exception | None = None) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return shutil.disk_usage(folder).free < ROOM


def _check_room(target: Path, error: Exception) -> None:
    """Say that the disk is full where that is the cause of an error."""
    if _is_full(target.parent, error):
        raise OSError(_cannot_write(target, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))) from error


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk and not only on their way to it."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folder
        return
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that knows no such thing
            raise
    finally:
        os.close(handle)


def _cannot_write(path: Path, error: OSError, what: str = "The output") -> str:
    reason = {errno.ENOSPC: "the disk is full", errno.ENOENT: "no file can be made there"}.get(
        error.errno or 0, (error.strerror or str(error)).lower()
    )
    return f"{what} {shown_path(path)} cannot be written: {reason}; name another file or folder."
