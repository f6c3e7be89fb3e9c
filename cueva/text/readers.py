"""One reader for each format: from a source to pairs of a document's name and its text.

A reader hands text that cannot be used to `bad(reason, message)`. If that returns, the reader goes on with what comes
after: the next line or row where the format lets it find one, else the next file.
"""

import ast
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final

from cueva.errors import DependencyError, TextError, nearest
from cueva.text.sources import Source
from cueva.text.strings import half_character

Bad = Callable[[str, str], None]
Texts = Iterator[tuple[str, str]]

_BOM: Final = b"\xef\xbb\xbf"
_ROWS: Final = 1024
"""Rows of a parquet file turned into Python strings at a time."""

LONGEST_LINE: Final = 1 << 28
"""Bytes of one JSON line. Packed data of a few megabytes can unpack to a line that fills the memory."""


def text_file(source: Source, bad: Bad) -> Texts:
    """Read a whole file as one document."""
    try:
        with open(source.path, "rb") as file:
            yield from text_stream(source, file, bad)
    except OSError as error:
        bad("unreadable", f"cannot read {source.path}: {error.strerror or error}")


def text_stream(source: Source, stream: BinaryIO, bad: Bad) -> Texts:
    """Read an open stream as one document; a byte-order mark is no part of the text."""
    data = stream.read().removeprefix(_BOM)
    if not data:
        if not source.name.endswith("__init__.py"):
            bad("empty", f"{source.path} is empty")
        return
    try:
        yield source.name, data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        bad("bad UTF-8", f"{source.path}, line {line}: {_byte(data, error)} is not valid UTF-8")


def topics(source: Source, bad: Bad) -> Texts:
    """Read the texts of `pydoc_data/topics.py`, one document for each topic. The file is parsed and never run."""
    for _, code in text_file(source, bad):
        try:
            tables = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Dict)]
            table = ast.literal_eval(tables[0])
        except (SyntaxError, ValueError, IndexError):
            bad("unreadable", f"{source.path} is not the table of topics that Python ships")
            return
        for topic, text in sorted(table.items()):
            yield f"{source.name.removesuffix('.py')}/{topic}", text


def json_lines(source: Source, key: str, bad: Bad) -> Texts:
    """Read a file with one JSON object on each line, packed by gzip or not."""
    try:
        with open(source.path, "rb") as file:
            if source.kind == "jsonl.gz":
                with gzip.open(file) as stream:
                    yield from json_stream(source, stream, key, bad)
            else:
                yield from json_stream(source, file, key, bad)
    except OSError as error:
        bad("unreadable", f"cannot read {source.path}: {error.strerror or error}")


def json_stream(source: Source, stream: BinaryIO | gzip.GzipFile, key: str, bad: Bad) -> Texts:
    """Read JSON lines from an open stream; lines that hold only white space are passed over."""
    number = 0
    found = False
    while True:
        try:
            line = stream.readline(LONGEST_LINE)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            bad("corrupt file", f"{source.path}, line {number + 1}: not sound gzip data ({_first_line(error)})")
            return
        if not line:
            break
        number += 1
        where = f"{source.path}, line {number}"
        if number == 1:
            line = line.removeprefix(_BOM)
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            bad("too long", f"{where}: more than {LONGEST_LINE:,} bytes without an end of line")
            return
        if not line.strip():
            continue
        found = True
        text = _json_text(line, key, where, bad)
        if text is not None:
            yield f"{source.name}#{number}", text
    if not found:
        bad("empty", f"{source.path} is empty")


def parquet(source: Source, key: str, bad: Bad) -> Texts:
    """Read a column of a parquet file, a few rows of one row group at a time."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DependencyError(f"reading {source.path} needs pyarrow: pip install 'cueva[data]'") from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(source.path) as file:
            if key not in file.schema_arrow.names:
                bad("missing key", _no_key(source.path, "column", key, file.schema_arrow.names))
                return
            if file.metadata.num_rows == 0:
                bad("empty", f"{source.path} is empty")
                return
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=[key]):
                    for value in batch.column(0):
                        number += 1
                        text = _cell(value, f"{source.path}, row {number}", key, bad)
                        if text is not None:
                            yield f"{source.name}#{number}", text
    except (pyarrow.ArrowException, OSError) as error:
        # A corrupt file surfaces as ArrowInvalid, or as an OSError that carries no error number.
        if isinstance(error, OSError) and error.errno:
            bad("unreadable", f"cannot read {source.path}: {error.strerror or error}")
        else:
            where = f", after row {number}" if number else ""
            bad("corrupt file", f"{source.path}{where}: not a sound parquet file ({_first_line(error)})")


def data_set(source: Source, key: str, bad: Bad) -> Texts:
    """Stream a data set of the Hugging Face hub: `OWNER/NAME[/CONFIGURATION][:SPLIT]`, split `train` by default."""
    try:
        import datasets
    except ImportError as error:
        raise DependencyError(f"reading hf:{source.path} needs datasets: pip install 'cueva[data]'") from error
    name, _, split = source.path.partition(":")
    parts = name.split("/")
    configuration = "/".join(parts[2:]) or None
    number = 0
    try:
        rows = datasets.load_dataset("/".join(parts[:2]), configuration, split=split or "train", streaming=True)
        for row in rows:
            number += 1
            where = f"hf:{source.path}, row {number}"
            if key not in row:
                bad("missing key", _no_key(where, "column", key, list(row)))
            else:
                text = _checked(row[key], where, key, bad)
                if text is not None:
                    yield f"{source.name}#{number}", text
    except (TextError, GeneratorExit):
        raise
    except Exception as error:  # the hub, the network and every file format behind a data set have errors of their own
        raise TextError(
            f"cannot read the data set {name!r}{f' after row {number}' if number else ''}: {_first_line(error)}",
            way_out="try again with a network, check the name and split, or download it and name its files instead",
        ) from error
    if not number:
        bad("empty", f"hf:{source.path} is empty")


# --- private ----------------------------------------------------------------------------------------------------------


def _json_text(line: bytes, key: str, where: str, bad: Bad) -> str | None:
    try:
        row: Any = json.loads(line.decode())
    except UnicodeDecodeError as error:
        bad("bad UTF-8", f"{where}: {_byte(line, error)} is not valid UTF-8")
        return None
    except (ValueError, RecursionError) as error:
        bad("bad JSON", f"{where}: not valid JSON ({_first_line(error)})")
        return None
    if not isinstance(row, dict):
        bad("bad JSON", f"{where}: expected an object with the key {key!r}, found {type(row).__name__}")
        return None
    if key not in row:
        bad("missing key", _no_key(where, "key", key, list(row)))
        return None
    return _checked(row[key], where, key, bad)


def _cell(value: Any, where: str, key: str, bad: Bad) -> str | None:
    try:
        return _checked(value.as_py(), where, key, bad)
    except UnicodeDecodeError as error:
        bad("bad UTF-8", f"{where}: {_byte(error.object, error)} is not valid UTF-8")
        return None


def _checked(value: Any, where: str, key: str, bad: Bad) -> str | None:
    if not isinstance(value, str):
        bad("not text", f"{where}: {key!r} holds {'nothing' if value is None else type(value).__name__}, not a string")
        return None
    if not value:
        bad("empty", f"{where}: {key!r} is empty")
        return None
    if not value.isascii() and (half := half_character(value)):
        bad("half a character", f"{where}: {half}")
        return None
    return value


def _no_key(where: str, noun: str, key: str, known: list[str]) -> str:
    shown = ", ".join(map(repr, known[:8])) or "none"
    near = nearest(key, known)
    return f"{where}: there is no {noun} {key!r}{near}; found {shown}; set text_key to the one that holds the text"


def _byte(data: bytes, error: UnicodeDecodeError) -> str:
    return f"byte 0x{data[error.start]:02x}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    line = io.StringIO(text).readline().strip()
    return line if len(line) <= 300 else line[:300] + "..."
