"""What a name on the command line means: which files, data sets or built-in texts it stands for, and in which order.

Every thing found has a `name` that stays the same when the folder is moved or the current folder changes: held-out
documents are chosen by it, and it appears in the index of the shards.
"""

import glob
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cueva.errors import TextError

Kind = Literal["text", "jsonl", "jsonl.gz", "parquet", "topics", "hf", "stdin", "stdin jsonl"]

SUFFIXES: Final[dict[str, Kind]] = {
    ".txt": "text",
    ".md": "text",
    ".py": "text",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl.gz",
    ".parquet": "parquet",
}
"""What is read from a folder; a file named by itself is read whatever its suffix, as plain text unless it is here."""

_LEFT_OUT: Final = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Source:
    """One thing to read."""

    kind: Kind
    name: str
    """Stable across machines and current folders, with forward slashes."""
    path: str = ""
    """Where it lies, as messages spell it; for `hf` the name of the data set."""


@dataclass(frozen=True)
class Stamp:
    """What a file looked like from outside when it was read; a difference means that it must be read again."""

    name: str
    bytes: int
    modified_ns: int


def find(names: Sequence[str]) -> Iterator[Source]:
    """List what the names stand for, in the order of the names; within a folder or glob, sorted. A file is given once.

    `-` is standard input, one document; `-:jsonl` standard input with a JSON object on each line. `python` is the
    running interpreter's standard library. `hf:NAME` or `hf:NAME:SPLIT` is a data set of the Hugging Face hub.
    Everything else is a path: a file, a folder (searched for the suffixes in `SUFFIXES`; names that begin with a dot
    are passed over), or a pattern with `*`, `?`, `[...]` or `**`. A file that is called `python` is `./python`.

    Raises:
        TextError: a name stands for nothing.
    """
    seen: set[str] = set()
    for name in names:
        for source in _meaning(name):
            key = os.path.realpath(source.path) if source.kind in SUFFIXES.values() else f"{source.kind}:{source.name}"
            if key not in seen:
                seen.add(key)
                yield source


def stamp(source: Source) -> Stamp | None:
    """Describe a file from outside; None for what cannot be told to be unchanged without reading it."""
    if source.kind in ("stdin", "stdin jsonl"):
        return None
    if source.kind == "hf":
        # A data set's content belongs to the hub, so its name stands for it.
        return Stamp(source.name, 0, 0)
    try:
        found = os.stat(source.path)
    except OSError as error:
        raise TextError(f"cannot read {source.path}: {os.strerror(error.errno or 0).lower()}") from error
    return Stamp(source.name, found.st_size, found.st_mtime_ns)


# --- private ----------------------------------------------------------------------------------------------------------


def _meaning(name: str) -> Iterator[Source]:
    if name == "-":
        yield Source("stdin", "-", "standard input")
    elif name == "-:jsonl":
        yield Source("stdin jsonl", "-", "standard input")
    elif name == "python":
        yield from _standard_library()
    elif name.startswith("hf:"):
        yield _data_set(name)
    elif os.path.isdir(name):
        yield from _folder(name, _last_part(name), must=True)
    elif os.path.exists(name):
        yield _file(name, f"{Path(os.path.abspath(name)).parent.name}/{os.path.basename(name)}".lstrip("/"))
    elif glob.has_magic(name):
        yield from _pattern(name)
    else:
        raise TextError(
            f"there is no file or folder {name!r} to read text from",
            way_out="try a path, a pattern such as 'texts/**/*.md' in quotes, hf:NAME, python, or - for standard input",
        )


def _data_set(name: str) -> Source:
    path = name.removeprefix("hf:")
    if not path or path.startswith(":") or path.endswith(":"):
        raise TextError(f"{name!r} names no data set", way_out="try hf:OWNER/NAME or hf:OWNER/NAME:SPLIT")
    return Source("hf", name, path)


def _file(path: str, name: str) -> Source:
    return Source(_kind(path) or "text", name, path)


def _kind(path: str) -> Kind | None:
    lower = path.lower()
    return next((kind for suffix, kind in SUFFIXES.items() if lower.endswith(suffix)), None)


def _last_part(path: str) -> str:
    return Path(os.path.abspath(path)).name


def _folder(root: str, name: str, *, must: bool) -> Iterator[Source]:
    found = False
    for folder, below, files in os.walk(root):
        below[:] = sorted(part for part in below if not part.startswith(".") and part != "__pycache__")
        place = Path(os.path.relpath(folder, root)).as_posix()
        prefix = name if place == "." else f"{name}/{place}"
        for file in sorted(files):
            if not file.startswith(".") and _kind(file):
                found = True
                yield _file(os.path.join(folder, file), f"{prefix}/{file}".lstrip("/"))
    if must and not found:
        raise TextError(f"the folder {root} holds no text: looked for {', '.join(SUFFIXES)} in it and below")


def _pattern(pattern: str) -> Iterator[Source]:
    """Files that match; folders that match are searched like folders given by name, except under `**`."""
    paths = sorted(glob.glob(pattern, recursive=True))
    # Names are relative to the part of the pattern that is a plain folder, so they do not depend on where it lies.
    plain = pattern
    while glob.has_magic(plain):
        plain = os.path.dirname(plain)
    base = os.path.abspath(plain or ".")
    found = False
    for path in paths:
        name = f"{Path(base).name}/{Path(os.path.relpath(path, base)).as_posix()}".lstrip("/")
        if os.path.isfile(path):
            found = True
            yield _file(path, name)
        elif "**" not in pattern and os.path.isdir(path):
            for source in _folder(path, name, must=False):
                found = True
                yield source
    if not found:
        raise TextError(f"no file matches the pattern {pattern!r}")


def _standard_library() -> Iterator[Source]:
    """List the interpreter's own sources by their module names, and the language reference that `help()` shows.

    Tests are left out, because many systems ship Python without them, and so is whatever is no module of the standard
    library (installed packages, the build's own settings): the corpus then depends on Python's version and on nothing
    else. `pydoc_data.topics` is a table of texts; each topic is a document of its own.
    """
    root = sysconfig.get_paths()["stdlib"]
    found = False
    for module in sorted(sys.stdlib_module_names):
        path = os.path.join(root, module)
        if os.path.isfile(path + ".py"):
            found = True
            yield Source("text", f"python/{module}.py", path + ".py")
        if not os.path.isdir(path):
            continue
        for folder, below, files in os.walk(path):
            below[:] = sorted(set(below) - _LEFT_OUT)
            place = Path(os.path.relpath(folder, root)).as_posix()
            for file in sorted(files):
                if file.endswith(".py"):
                    topics = f"{place}/{file}" == "pydoc_data/topics.py"
                    yield Source("topics" if topics else "text", f"python/{place}/{file}", os.path.join(folder, file))
    if not found:
        raise TextError(
            f"this Python's standard library has no sources in {root}",
            way_out="try a folder of your own texts, or a Python that was installed with its .py files",
        )
