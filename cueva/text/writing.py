"""The files of a preparation: written so that it can be killed at any moment and goes on where it was.

Work goes into `.NAME.unfinished` beside the folder `NAME`. Every few seconds what was written is synced, and then
`progress.json` records how long each file is. After a kill the files are cut back to that, the documents already done
are passed over (read, and compared by their hash, but not encoded again), and the result is the same to the last byte.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np

from cueva.errors import TextError
from cueva.files import atomic_folder, atomic_write, disk_errors, sha256_file
from cueva.text import shards
from cueva.text.corpus import Document, choice, held_out
from cueva.text.shards import FORMAT, SPLITS, SUFFIXES, VERSION, BatchTokenizer, Split

try:
    import fcntl
except ImportError:  # Windows: two preparations of one folder at once are then not noticed
    fcntl = None

_MOST_DOCUMENTS: Final = 1024
"""Documents encoded together, however short."""


class Progress(NamedTuple):
    """How far a preparation is."""

    documents: int
    bytes: int
    """UTF-8 bytes of the texts so far."""
    tokens: int
    seconds: float
    """Since this call began; documents done by an earlier call are in the counts and not in the time."""


class Job:
    """The files of an unfinished preparation, opened where the last call left them."""

    def __init__(self, work: Path, tokenizer: BatchTokenizer, share: float, request: dict[str, Any]):
        self.work = work
        self.tokenizer = tokenizer
        self.share = share
        self.dtype = shards.dtype_for(tokenizer.size)
        self.names = [f"{split}.{suffix}" for split in SPLITS for suffix in SUFFIXES]
        saved = self._saved(request)
        self.discarded = saved is None and (work / "progress.json").exists()
        with disk_errors(work):
            if saved is None:
                # Removed, not emptied: after a kill at the very end they can be one with those of a finished folder.
                for name in ("progress.json", *self.names):
                    (work / name).unlink(missing_ok=True)
                saved = {"documents": 0, "bytes": 0, "sizes": dict.fromkeys(self.names, 0), "documents_sha256": None}
            self.documents: int = saved["documents"]
            self.bytes: int = saved["bytes"]
            self.before: str | None = saved["documents_sha256"]
            self.request = request
            self.digest = hashlib.sha256()
            self.files: dict[str, BinaryIO] = {}
            for name in self.names:
                # Append mode creates what is missing and empties nothing.
                self.files[name] = open(work / name, "ab")  # noqa: SIM115
                self.files[name].truncate(saved["sizes"][name])
                self.files[name].seek(0, os.SEEK_END)
        self.tokens = {split: self.files[f"{split}.bin"].tell() // self.dtype.itemsize for split in SPLITS}

    def _saved(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Return the recorded progress, if it is of the same request and no file is shorter than it says."""
        try:
            saved = json.loads((self.work / "progress.json").read_text(encoding="utf-8"))
            whole = all((self.work / name).stat().st_size >= saved["sizes"][name] for name in self.names)
            return saved if whole and saved["request"] == request else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def run(
        self,
        docs: Iterable[Document],
        progress: Callable[[Progress], None] | None,
        batch_bytes: int,
        save_seconds: float,
    ) -> None:
        """Encode and write all documents that are not there yet."""
        began = saved = time.monotonic()
        stream = iter(docs)
        self._pass_over(stream)
        for batch, sizes in _batches(stream, batch_bytes):
            encoded = shards.encode_documents(batch, self.tokenizer)
            with disk_errors(self.work):
                for document, size, ids in zip(batch, sizes, encoded, strict=True):
                    self._write(document, size, ids)
            if time.monotonic() - saved >= save_seconds:
                self.save()
                saved = time.monotonic()
            if progress is not None:
                tokens = sum(self.tokens.values())
                progress(Progress(self.documents, self.bytes, tokens, time.monotonic() - began))
        self.save()

    def _pass_over(self, stream: Iterator[Document]) -> None:
        for _ in range(self.documents):
            document = next(stream, None)
            if document is None:
                break
            feed(self.digest, document)
        if self.before is not None and self.digest.hexdigest() != self.before:
            raise TextError(
                f"the documents differ from those of the unfinished preparation in {self.work}",
                way_out="try deleting that folder to begin anew",
            )

    def _write(self, document: Document, size: int, ids: Sequence[int]) -> None:
        split: Split = "held_out" if held_out(document.source, self.share) else "train"
        self.tokens[split] += len(ids)
        self.files[f"{split}.bin"].write(np.array(ids, self.dtype.newbyteorder("<")).tobytes())
        self.files[f"{split}.index"].write(np.array([self.tokens[split], size], "<i8").tobytes())
        self.files[f"{split}.sources"].write(json.dumps(document.source).encode() + b"\n")
        self.documents += 1
        self.bytes += size
        feed(self.digest, document)

    def save(self) -> None:
        """Make what was written durable, then say how much it is."""
        with disk_errors(self.work):
            for file in self.files.values():
                file.flush()
                os.fsync(file.fileno())
        record = {
            "documents": self.documents,
            "bytes": self.bytes,
            "documents_sha256": self.digest.hexdigest(),
            "sizes": {name: file.tell() for name, file in self.files.items()},
            "request": self.request,
        }
        atomic_write(self.work / "progress.json", json.dumps(record))

    def close(self) -> None:
        """Close the files; what was not saved will be cut off by the next call."""
        for file in self.files.values():
            with contextlib.suppress(OSError):  # a full disk has been reported already
                file.close()


def feed(digest: Any, document: Document) -> None:
    """Add a document to a running hash of all documents, names and borders included."""
    name, text = document.source.encode("utf-8", "surrogatepass"), document.text.encode("utf-8", "surrogatepass")
    digest.update(f"{len(name)} {len(text)} ".encode())
    digest.update(name)
    digest.update(text)


@contextlib.contextmanager
def locked(work: Path, target: Path) -> Iterator[None]:
    """Hold the unfinished folder alone; the system lets go when this process ends, however it ends.

    Raises:
        TextError: another process is preparing the same folder.
    """
    with disk_errors(work):
        lock = open(work / "lock", "ab")  # noqa: SIM115
    with lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise TextError(
                    f"another process is preparing {target}", way_out="try again when it is done, or another folder"
                ) from error
            except OSError:  # a file system without locks
                pass
        yield


def publish(job: Job, target: Path, request: dict[str, Any], skipped: dict[str, int]) -> dict[str, Any]:
    """Make the finished folder appear under its name, whole; returns its manifest."""
    notes: list[str] = []
    with disk_errors(target), atomic_folder(target) as folder:
        move = _balance(job, notes)
        for name in job.names:
            if move is None:
                _place(job.work / name, folder / name)
        if move is not None:
            _move(job, folder, *move)
        counts = {split: _count(folder, split, job.dtype.itemsize) for split in SPLITS}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "dtype": job.dtype.name,
            "vocab_size": job.tokenizer.size,
            "tokenizer": job.tokenizer.fingerprint,
            "begin_token": job.tokenizer.bos_id,
            "end_token": job.tokenizer.eos_id,
            "sources": request["sources"],
            "held_out_share": job.share,
            **counts,
            "documents_sha256": job.digest.hexdigest(),
            "skipped": skipped,
            "notes": notes,
            "files": {
                name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
                for name in job.names
            },
        }
        manifest["fingerprint"] = shards.fingerprint_of(manifest)
        (folder / "inputs.json").write_text(json.dumps(request) + "\n", encoding="utf-8")
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


# --- private ----------------------------------------------------------------------------------------------------------


def _batches(stream: Iterator[Document], batch_bytes: int) -> Iterator[tuple[list[Document], list[int]]]:
    batch: list[Document] = []
    sizes: list[int] = []
    total = 0
    for document in stream:
        batch.append(document)
        sizes.append(len(document.text.encode("utf-8", "replace")))
        total += sizes[-1]
        if total >= batch_bytes or len(batch) == _MOST_DOCUMENTS:
            yield batch, sizes
            batch, sizes, total = [], [], 0
    if batch:
        yield batch, sizes


def _place(here: Path, there: Path) -> None:
    try:
        os.link(here, there)
    except OSError:  # a file system without hard links
        shutil.copyfile(here, there)


def _count(folder: Path, split: Split, item: int) -> dict[str, int]:
    index = np.fromfile(folder / f"{split}.index", "<i8").reshape(-1, 2)
    tokens = (folder / f"{split}.bin").stat().st_size // item
    return {"documents": len(index), "tokens": tokens, "bytes": int(index[:, 1].sum())}


def _balance(job: Job, notes: list[str]) -> tuple[Split, int] | None:
    """Decide which document has to change sides so that neither is empty: the side it is on, and its place there."""
    documents = {split: (job.work / f"{split}.index").stat().st_size // 16 for split in SPLITS}
    if documents["train"] == 0:
        names = _names(job, "held_out")
        place = max(range(len(names)), key=lambda one: choice(names[one]))
        notes.append(f"the share of {job.share} picked every document to be held out, so {names[place]} is trained on")
        return "held_out", place
    if documents["held_out"] == 0 and job.share > 0:
        if documents["train"] == 1:
            notes.append("nothing is held out, because the corpus is a single document")
            return None
        names = _names(job, "train")
        place = min(range(len(names)), key=lambda one: choice(names[one]))
        notes.append(f"the share of {job.share} picked no document, so {names[place]} is held out")
        return "train", place
    return None


def _names(job: Job, split: Split) -> list[str]:
    lines = (job.work / f"{split}.sources").read_text(encoding="ascii").splitlines()
    return [json.loads(line) for line in lines]


def _move(job: Job, folder: Path, side: Split, place: int) -> None:
    """Write both sides anew with one document on the other side, which is empty before."""
    other: Split = "train" if side == "held_out" else "held_out"
    kind = job.dtype.newbyteorder("<")
    tokens = np.memmap(job.work / f"{side}.bin", kind, "r")
    index = np.fromfile(job.work / f"{side}.index", "<i8").reshape(-1, 2)
    lines = (job.work / f"{side}.sources").read_bytes().splitlines(keepends=True)
    first, last = int(index[place - 1, 0]) if place else 0, int(index[place, 0])
    with open(folder / f"{side}.bin", "wb") as file:
        tokens[:first].tofile(file)
        tokens[last:].tofile(file)
    kept = np.delete(index, place, axis=0)
    kept[place:, 0] -= last - first
    kept.astype("<i8").tofile(folder / f"{side}.index")
    (folder / f"{side}.sources").write_bytes(b"".join(lines[:place] + lines[place + 1 :]))
    tokens[first:last].tofile(folder / f"{other}.bin")
    np.array([[last - first, index[place, 1]]], "<i8").tofile(folder / f"{other}.index")
    (folder / f"{other}.sources").write_bytes(lines[place])
