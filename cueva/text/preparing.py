"""Documents to token shards: when to begin, when to go on, when to use again what is there, and when to refuse.

`writing` does the work. The folder appears under its name in one step, when everything is in it.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from cueva.errors import TextError
from cueva.files import disk_errors, recover_folder
from cueva.text import shards
from cueva.text.corpus import Corpus, Document
from cueva.text.shards import COMPANIONS, FILES, BatchTokenizer
from cueva.text.writing import Job, Progress, feed, locked, publish


class Prepared(NamedTuple):
    """What a preparation left behind."""

    folder: Path
    reused: bool
    """The folder was already there, made from the same texts with the same tokenizer."""
    resumed_documents: int
    """Documents that an earlier call, which did not finish, had done."""
    manifest: dict[str, Any]
    """As written: `train` and `held_out` with documents, tokens and bytes, `skipped`, `fingerprint` and so on."""
    notes: tuple[str, ...]
    """Sentences worth showing."""


def prepare(
    docs: Corpus | Iterable[Document],
    tokenizer: BatchTokenizer,
    folder: str | os.PathLike[str],
    *,
    held_out_share: float,
    progress: Callable[[Progress], None] | None = None,
    replace: bool = False,
    batch_bytes: int = 2_000_000,
    save_seconds: float = 5.0,
) -> Prepared:
    """Turn documents into token shards.

    A folder that was made from the same files (by name, size and time), with the same tokenizer and share, is used
    again as it is. Where that cannot be seen from outside (standard input, documents from your own program) the texts
    are read and compared by their hash. A call that was killed is taken up where it was.

    Args:
        docs: a `Corpus`, or any documents.
        tokenizer: its end token is required; a begin token is written if there is one.
        folder: where to; the folder itself must not exist, or be prepared text, or be empty.
        held_out_share: about this share of the documents is kept out of training, chosen by `corpus.held_out`; from 0
            to below 1. If that picks none of two or more documents, the one with the smallest hash is held out; if it
            picks all, the one with the largest is trained on.
        progress: called after each batch.
        replace: make the folder anew if it was made from something else.
        batch_bytes: how much text is encoded at a time.
        save_seconds: how much work a kill may cost.

    Raises:
        TextError: there are no documents; one cannot be encoded; the folder holds something else, and `replace` is off;
            the texts changed while they were read.
        CheckpointError: the folder cannot be written.
    """
    shards.require_end(tokenizer)
    if not 0 <= held_out_share < 1:
        raise TextError(f"held_out_share is {held_out_share}; a share of the documents, from 0 to below 1, is expected")
    target = Path(os.path.realpath(folder))
    work = target.with_name(f".{target.name}.unfinished")
    request = _request(docs, tokenizer, held_out_share)
    recover_folder(target)
    _leave_others_alone(target, replace)
    finished = None if replace and not _same(target, request) else _finished(target, docs, request)
    if finished is not None:
        shutil.rmtree(work, ignore_errors=True)
        return Prepared(target, True, 0, finished, tuple(finished["notes"]))
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    with locked(work, target):
        job = Job(work, tokenizer, held_out_share, request)
        with contextlib.closing(job):
            if job.discarded:
                notes.append("an unfinished preparation of something else was discarded")
            resumed = job.documents
            job.run(docs, progress, batch_bytes, save_seconds)
        if job.documents == 0:
            shutil.rmtree(work, ignore_errors=True)
            raise TextError("there are no documents to prepare: the corpus is empty")
        if request["stamps"] is not None and _request(docs, tokenizer, held_out_share) != request:
            raise TextError("the texts changed while they were read", way_out="try again when nothing writes to them")
        skipped = dict(docs.skipped) if isinstance(docs, Corpus) else {}
        manifest = publish(job, target, request, skipped)
        shutil.rmtree(work, ignore_errors=True)
    return Prepared(target, False, resumed, manifest, (*notes, *manifest["notes"]))


# --- what was asked for -----------------------------------------------------------------------------------------------


def _request(docs: Corpus | Iterable[Document], tokenizer: BatchTokenizer, share: float) -> dict[str, Any]:
    """Gather everything that decides the result and can be known without reading the texts."""
    known = isinstance(docs, Corpus)
    stamps = docs.stamps() if known else None
    return {
        "sources": list(docs.sources) if known else None,
        "text_key": docs.text_key if known else None,
        "stamps": None if stamps is None else [[one.name, one.bytes, one.modified_ns] for one in stamps],
        "tokenizer": tokenizer.fingerprint,
        "held_out_share": share,
    }


def _leave_others_alone(target: Path, replace: bool) -> None:
    """Refuse a folder that holds anybody's files but ours; replacing it would delete them."""
    if not target.exists():
        return
    if not target.is_dir():
        raise TextError(
            f"{target} is a file, but a folder of token shards is to be written", way_out="try another path"
        )
    names = {path.name for path in target.iterdir()}
    others = sorted(names - FILES - COMPANIONS)
    if names and "manifest.json" not in names:
        raise TextError(f"{target} exists and is not prepared text", way_out="try another folder")
    if others and replace:
        raise TextError(
            f"{target} holds {others[0]}, which is no part of prepared text and would be deleted",
            way_out="try another folder, or move what is not prepared text elsewhere",
        )


def _same(target: Path, request: dict[str, Any]) -> bool:
    try:
        shards.check_files(target)
        return _difference(json.loads((target / "inputs.json").read_text(encoding="utf-8")), request) is None
    except (TextError, OSError, ValueError, KeyError, TypeError):
        return False


def _finished(target: Path, docs: Corpus | Iterable[Document], request: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of a folder that holds what is asked for; None if there is no folder yet."""
    if not target.exists() or not any(target.iterdir()):
        return None
    other = "try another folder, or replace=True (--replace) to make this one anew"
    manifest = shards.check_files(target)
    try:
        inputs = json.loads((target / "inputs.json").read_text(encoding="utf-8"))
        difference = _difference(inputs, request)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TextError(f"{target / 'inputs.json'} is missing or damaged", way_out=other) from error
    if isinstance(docs, Corpus) and manifest["skipped"] and not docs.skip_bad:
        difference = difference or f"{sum(manifest['skipped'].values())} unusable texts were passed over then"
    if difference is None and request["stamps"] is None:
        digest = hashlib.sha256()
        for document in docs:
            feed(digest, document)
        if digest.hexdigest() != manifest["documents_sha256"]:
            difference = "the documents are not the same"
    if difference is not None:
        raise TextError(f"{target} was prepared from something else: {difference}", way_out=other)
    return manifest


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Say in words what differs between two requests."""
    if before["tokenizer"] != now["tokenizer"]:
        return "the tokenizer is another one"
    for key in ("held_out_share", "text_key", "sources"):
        if before[key] != now[key]:
            return f"{key} was {before[key]!r} and is {now[key]!r}"
    then, today = before["stamps"], now["stamps"]
    if then == today:
        return None
    old, new = {name: rest for name, *rest in then or []}, {name: rest for name, *rest in today or []}
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    first = changed[0] if changed else "their order"
    what = "is new" if first not in old else "is gone" if first not in new else "changed"
    more = f", and {len(changed) - 1} more differ" if len(changed) > 1 else ""
    return f"{first} {what} since{more}"
