"""Documents, one after another, from whatever holds text.

    for document in documents(["notes/", "articles.jsonl.gz", "python"]):
        print(document.source, len(document.text))

Text that cannot be used is an error that names the file and the line. With `skip_bad` the reader goes on, counts it
under its reason, and tells `on_bad`. Nothing is left out without being counted, with one exception: an empty
`__init__.py` is how Python marks a folder, not a text that is missing.
"""

import hashlib
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from cueva.errors import TextError
from cueva.text import readers
from cueva.text.sources import Source, Stamp, find, stamp


@dataclass(frozen=True)
class Document:
    """One text, and where it comes from."""

    text: str
    source: str
    """A stable relative path; `path#12` for the twelfth line or row of a file that holds many documents."""


class Corpus:
    """Named texts that can be read again and again, always in the same order.

    Args:
        sources: files, folders, patterns, `hf:NAME[:SPLIT]`, `python`, `-`; see `cueva.text.sources.find`.
        skip_bad: go on after text that cannot be used.
        on_bad: called with a reason ("bad UTF-8") and a sentence for each text passed over.
        text_key: the key or column that holds the text in JSON lines, parquet and data sets.

    Raises:
        TextError: no source was named. What is wrong with a source appears when it is read.
    """

    def __init__(
        self,
        sources: Sequence[str],
        *,
        skip_bad: bool = False,
        on_bad: Callable[[str, str], None] | None = None,
        text_key: str = "text",
    ):
        if isinstance(sources, str):
            sources = [sources]
        if not sources:
            raise TextError("no text was named", way_out="try files, folders, hf:NAME, or python")
        self.sources = tuple(str(source) for source in sources)
        self.skip_bad = skip_bad
        self.text_key = text_key
        self.skipped: Counter[str] = Counter()
        """How many texts the latest reading passed over, by reason."""
        self._on_bad = on_bad
        self._input: BinaryIO | None = None

    def __iter__(self) -> Iterator[Document]:
        self.skipped.clear()
        for source in find(self.sources):
            for name, text in self._read(source):
                yield Document(text, name)

    def stamps(self) -> tuple[Stamp, ...] | None:
        """Sizes and times of the files, in order; None when standard input is among the sources.

        Raises:
            TextError: a source is not there.
        """
        found = [stamp(source) for source in find(self.sources)]
        known = tuple(one for one in found if one is not None)
        return known if len(known) == len(found) else None

    def _read(self, source: Source) -> Iterator[tuple[str, str]]:
        match source.kind:
            case "text":
                return readers.text_file(source, self._bad)
            case "topics":
                return readers.topics(source, self._bad)
            case "jsonl" | "jsonl.gz":
                return readers.json_lines(source, self.text_key, self._bad)
            case "parquet":
                return readers.parquet(source, self.text_key, self._bad)
            case "hf":
                return readers.data_set(source, self.text_key, self._bad)
            case "stdin":
                return readers.text_stream(source, self._standard_input(), self._bad)
            case "stdin jsonl":
                return readers.json_stream(source, self._standard_input(), self.text_key, self._bad)

    def _standard_input(self) -> BinaryIO:
        """Return standard input from its beginning: a pipe can be read once, so what came is kept in a file."""
        if self._input is None:
            self._input = tempfile.TemporaryFile()  # noqa: SIM115  (closed and removed together with this object)
            shutil.copyfileobj(sys.stdin.buffer, self._input)
        self._input.seek(0)
        return self._input

    def _bad(self, reason: str, message: str) -> None:
        if not self.skip_bad:
            raise TextError(message, way_out="try skip_bad (--skip-bad) to go on without what cannot be used")
        self.skipped[reason] += 1
        if self._on_bad is not None:
            self._on_bad(reason, message)


def documents(
    sources: Sequence[str],
    *,
    skip_bad: bool = False,
    on_bad: Callable[[str, str], None] | None = None,
    text_key: str = "text",
) -> Iterator[Document]:
    """Read the documents of the named sources once; `Corpus` describes the arguments.

    Raises:
        TextError: a source is missing, or a text cannot be used and `skip_bad` is off.
        DependencyError: parquet or a data set is named and the `data` extra is not installed.
    """
    return iter(Corpus(sources, skip_bad=skip_bad, on_bad=on_bad, text_key=text_key))


def choice(source: str) -> int:
    """Map a source's name to a number in 0 .. 2**64 - 1, the same everywhere: the first eight bytes of its sha256."""
    return int.from_bytes(hashlib.sha256(source.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def held_out(source: str, share: float) -> bool:
    """Decide by its name alone whether a document is kept out of training.

    The same name gets the same answer on every machine and in every corpus, so adding documents never moves one from
    training to evaluation, and a larger share holds out everything that a smaller one did.

    Args:
        source: the document's `source`.
        share: how large a part of all documents to hold out, from 0 (none) to below 1.
    """
    return choice(source) < share * 2.0**64
