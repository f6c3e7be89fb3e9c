"""Token shards: a corpus as token ids on disk, memory-mapped, with an index of its documents.

A folder holds two splits, `train` and `held_out`, of three files each, and says in `manifest.json` what they are:

    train.bin       all token ids, one after another, uint16 or uint32, little endian
    train.index     for each document two int64: where it ends in train.bin, in tokens, and its length as UTF-8 bytes
    train.sources   for each document one line: its name, as a JSON string
    manifest.json   format, tokenizer, counts, and size and sha256 of every file
    inputs.json     what the folder was made from: names, sizes and times of the files

A document is stored as begin token, text, end token. The manifest is there only when everything else is complete.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from cueva.errors import TextError
from cueva.files import sha256_file
from cueva.text.corpus import Document

Split = Literal["train", "held_out"]

FORMAT: Final = "cueva token shards"
VERSION: Final = 1
SPLITS: Final[tuple[Split, Split]] = ("train", "held_out")
SUFFIXES: Final = ("bin", "index", "sources")
FILES: Final = frozenset(
    {"manifest.json", "inputs.json"} | {f"{split}.{suffix}" for split in SPLITS for suffix in SUFFIXES}
)
"""All that a folder of token shards holds."""
COMPANIONS: Final = frozenset({"tokenizer.json", "tokenizer_config.json"})
"""What a caller may put beside them: the tokenizer that made them."""
_BATCH: Final = 256


class BatchTokenizer(Protocol):
    """What making shards needs of a tokenizer."""

    size: int

    @property
    def fingerprint(self) -> str:
        """Changes when the ids of some text change."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token before a document."""
        ...

    @property
    def eos_id(self) -> int | None:
        """The token after a document."""
        ...

    def encode_batch(self, texts: Sequence[str], *, bos: bool = False, eos: bool = False) -> list[list[int]]:
        """Turn texts into ids, between begin and end tokens if asked."""
        ...


class TokenShards:
    """One split of a corpus.

    Args:
        tokens: all ids, one document after another.
        starts: where each document starts, and where the last one ends.
        document_bytes: the length of each document's text in UTF-8.
        tokenizer: the fingerprint of the tokenizer that made the ids.
        fingerprint: changes when a token changes.
        sources: the documents' names, or the file that lists them.
    """

    def __init__(
        self,
        tokens: NDArray[np.unsignedinteger],
        starts: NDArray[np.int64],
        document_bytes: NDArray[np.int64],
        *,
        tokenizer: str,
        fingerprint: str,
        sources: Sequence[str] | Path,
    ):
        self.tokens = tokens
        self.starts = starts
        self.document_bytes = document_bytes
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self._sources = sources

    @classmethod
    def open(cls, folder: str | os.PathLike[str], split: Split = "train", *, verify: bool = True) -> Self:
        """Map one split of a prepared folder into memory.

        Args:
            folder: as `prepare` left it.
            split: `train` or `held_out`.
            verify: compare each file's sha256 with the manifest, which reads it once (about a second for a gigabyte);
                sizes are always compared.

        Raises:
            TextError: the folder is not prepared text, a file is missing, cut short or altered (the message names it),
                or the split holds no document.
        """
        place = Path(folder)
        manifest = read_manifest(place)
        if split not in SPLITS:
            raise TextError(f"there is no split {split!r}; the splits are: {', '.join(SPLITS)}")
        paths = {suffix: place / f"{split}.{suffix}" for suffix in SUFFIXES}
        for path in paths.values():
            _check(path, manifest["files"][path.name], verify)
        documents = manifest[split]["documents"]
        if documents == 0:
            raise TextError(
                f"no documents of {place} are held out: {_why_empty(manifest)}",
                way_out="try more documents, or a larger share of held-out ones",
            )
        index = np.fromfile(paths["index"], dtype="<i8").reshape(-1, 2)
        return cls(
            np.memmap(paths["bin"], dtype=np.dtype(manifest["dtype"]).newbyteorder("<"), mode="r"),
            np.concatenate([np.zeros(1, np.int64), index[:, 0].astype(np.int64)]),
            index[:, 1].astype(np.int64),
            tokenizer=manifest["tokenizer"],
            fingerprint=manifest["fingerprint"],
            sources=paths["sources"],
        )

    def __len__(self) -> int:
        return len(self.document_bytes)

    @property
    def bytes(self) -> int:
        """The length of all texts in UTF-8, without begin and end tokens: what bits per byte divides by."""
        return int(self.document_bytes.sum())

    @functools.cached_property
    def sources(self) -> Sequence[str]:
        """The documents' names, in order; read when first asked for."""
        if not isinstance(self._sources, Path):
            return self._sources
        return [json.loads(line) for line in self._sources.read_text(encoding="utf-8").splitlines()]

    def document(self, index: int) -> NDArray[np.unsignedinteger]:
        """Return the ids of one document, begin and end tokens included."""
        return self.tokens[self.starts[index] : self.starts[index + 1]]


def tokenize(docs: Iterable[Document], tokenizer: BatchTokenizer) -> TokenShards:
    """Make a split in memory, for texts that are looked at once; nothing is written.

    Raises:
        TextError: there are no documents, or the tokenizer has no end token.
    """
    require_end(tokenizer)
    parts: list[NDArray[np.unsignedinteger]] = []
    sizes: list[int] = []
    sources: list[str] = []
    batch: list[Document] = []

    def add() -> None:
        for document, ids in zip(batch, encode_documents(batch, tokenizer), strict=True):
            parts.append(np.array(ids, dtype_for(tokenizer.size)))
            sizes.append(len(document.text.encode()))
            sources.append(document.source)
        batch.clear()

    for document in docs:
        batch.append(document)
        if len(batch) == _BATCH:
            add()
    add()
    if not parts:
        raise TextError("there are no documents in this text")
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part.tobytes())
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return TokenShards(
        np.concatenate(parts),
        starts,
        np.array(sizes, np.int64),
        tokenizer=tokenizer.fingerprint,
        fingerprint=digest.hexdigest(),
        sources=sources,
    )


def encode_documents(documents: Sequence[Document], tokenizer: BatchTokenizer) -> list[list[int]]:
    """Turn documents into ids; an error names the document.

    Raises:
        TextError: a text cannot be encoded.
    """
    try:
        return tokenizer.encode_batch([document.text for document in documents], bos=True, eos=True)
    except TextError:
        for document in documents:
            try:
                tokenizer.encode_batch([document.text])
            except TextError as error:
                raise TextError(f"{document.source}: {error.message}", way_out=error.way_out) from error
        raise


def require_end(tokenizer: BatchTokenizer) -> None:
    """Raise TextError if a tokenizer has no token to end a document with."""
    if tokenizer.eos_id is None:
        raise TextError(
            "this tokenizer has no end token, so documents could not be told apart",
            way_out="try naming one as `eos_token` in its tokenizer_config.json",
        )


def dtype_for(vocabulary: int) -> np.dtype[np.unsignedinteger]:
    """Return the smallest type of integer that we store ids of a vocabulary in."""
    return np.dtype(np.uint16 if vocabulary < 1 << 16 else np.uint32)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check a prepared folder's manifest.

    Raises:
        TextError: there is none, it is of another version, or it was altered.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise TextError(
            f"{folder} is not prepared text: there is no manifest.json in it",
            way_out="try `cueva prepare` on the texts first",
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"], manifest["version"]
        if found != (FORMAT, VERSION):
            raise TextError(
                f"{path} says format {found[0]!r}, version {found[1]!r}; {FORMAT!r}, {VERSION} is read here"
            )
        if manifest["fingerprint"] != fingerprint_of(manifest):
            raise TextError(f"{path} was altered: its fingerprint does not fit what it says")
    except (ValueError, KeyError, TypeError) as error:
        raise TextError(f"{path} is damaged: {error!r}", way_out="try preparing the texts again") from error
    return manifest


def check_files(folder: Path) -> dict[str, Any]:
    """Compare every file of a prepared folder with its manifest, which is returned.

    Raises:
        TextError: a file is missing, cut short or altered.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        _check(folder / name, expected, verify=True)
    return manifest


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """Hash what decides the tokens: format, type, tokenizer, and the sha256 of every file."""
    kept = {key: manifest[key] for key in ("format", "version", "dtype", "tokenizer", *SPLITS)}
    kept["files"] = {name: manifest["files"][name] for name in sorted(manifest["files"])}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


# --- private ----------------------------------------------------------------------------------------------------------


def _check(path: Path, expected: Mapping[str, Any], verify: bool) -> None:
    again = "try preparing the texts again"
    if not path.is_file():
        raise TextError(f"{path} is missing", way_out=again)
    size = path.stat().st_size
    if size != expected["bytes"]:
        what = "cut short" if size < expected["bytes"] else "longer than it was"
        raise TextError(f"{path} is {what}: {size:,} bytes instead of {expected['bytes']:,}", way_out=again)
    if verify and sha256_file(path) != expected["sha256"]:
        raise TextError(f"{path} was altered: its sha256 is not the one in manifest.json", way_out=again)


def _why_empty(manifest: Mapping[str, Any]) -> str:
    if manifest["held_out_share"] == 0:
        return "it was prepared with a share of 0"
    return "the corpus is a single document, which is trained on"
