"""Text for a run: documents, a tokenizer, and token shards, each made once and used again."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cueva.errors import ConfigError, TextError
from cueva.files import recover_folder
from cueva.text import Corpus, Document, Packing, Prepared, Progress, Tokenizer, TokenShards, held_out, sequential
from cueva.text import prepare as prepare_shards
from cueva.text.packing import permutation
from cueva.text.shards import read_manifest
from cueva.train import TrainConfig

Watch = Callable[[str, str, float, float | None], None]
"""Told how work goes on: what ("reading"), unit ("bytes"), how much is done, how much there is (None: nobody knows)."""
Say = Callable[[str], None]
"""Told a sentence worth showing."""

TRAIN: Final = "train"
"""The tokenizer that is learned from the text."""


class RunText(NamedTuple):
    """What a run reads."""

    tokenizer: Tokenizer
    train: Packing
    held_out: "HeldOut | None"
    """None: no document is held out."""
    fingerprint: str
    """Of all tokens and the order of rows."""


class HeldOut:
    """Held-out text as rows in a drawn order, so that the first few are a fair sample of the whole.

    Args:
        shards: the held-out split.
        length: positions of a row.
        seed: decides the order.
    """

    def __init__(self, shards: TokenShards, length: int, seed: int):
        self.shards = shards
        self._rows = sequential(shards, length)
        self._order = permutation(len(self._rows), seed)

    @property
    def rows_per_epoch(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def batch(self, step_rows: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids and documents of some rows, each (B, length + 1)."""
        return self._rows.batch([int(self._order[row]) for row in step_rows])


def run_text(
    config: TrainConfig, *, force: bool = False, watch: Watch | None = None, say: Say | None = None
) -> RunText:
    """Make or find the tokenizer, the shards and the rows of a run.

    A run keeps what it reads in its own directory, `tokenizer/` and `tokens/`, unless `data.sources` is one folder that
    `cueva prepare` made, which is used as it is.

    Raises:
        TextError: the text is missing, damaged, empty or too short, or supports no vocabulary of this size.
        ConfigError: keys of `data` that contradict what was prepared.
    """
    data, seed = config.data, config.run.seed
    prepared = _prepared_folder(data.sources)
    if prepared is not None:
        folder = prepared
        tokenizer = _tokenizer_of(config, folder)
    else:
        folder = config.directory / "tokens"
        corpus = Corpus(data.sources, skip_bad=data.skip_bad, text_key=data.text_key)
        tokenizer = _run_tokenizer(config, corpus, watch, say)
        documents = corpus if data.limit_bytes is None else _Limited(corpus, data.limit_bytes)
        made = prepare_shards(
            documents,
            tokenizer,
            folder,
            held_out_share=data.held_out_share,
            progress=_progress(corpus, watch),
            replace=force,
        )
        _tell(made, corpus, say)
    shards = TokenShards.open(folder, "train", verify=False)
    rows = Packing(shards, data.sequence_length, seed)
    held: HeldOut | None = None
    if read_manifest(folder)["held_out"]["documents"]:
        held = HeldOut(TokenShards.open(folder, "held_out", verify=False), data.sequence_length, seed)
    return RunText(tokenizer, rows, held, f"{shards.fingerprint}-{data.sequence_length}-{seed}")


def prepare(
    sources: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    tokenizer: str = TRAIN,
    vocab_size: int = 8192,
    held_out_share: float = 0.02,
    text_key: str = "text",
    skip_bad: bool = False,
    replace: bool = False,
    watch: Watch | None = None,
    say: Say | None = None,
) -> Prepared:
    """Turn text into a folder of token shards with its tokenizer, for `data.sources` of any number of runs.

    Args:
        sources: files, folders, globs, `hf:NAME[:SPLIT]`, `-`, `python`.
        folder: where to. Made already from the same text with the same tokenizer, it is used as it is.
        tokenizer: "train", or a folder or file that holds one.
        vocab_size: tokens to learn, if one is trained.
        held_out_share: share of the documents to keep out of training.
        text_key: where a JSON line or a table keeps its text.
        skip_bad: go on, counting, when a text cannot be used.
        replace: make the folder anew if it was made from something else.
        watch: told how it goes on.
        say: told what is worth knowing.

    Raises:
        TextError: what is wrong with the text, by file and line; or the folder holds something else.
        CheckpointError: the folder cannot be written.
    """
    corpus, target = Corpus(sources, skip_bad=skip_bad, text_key=text_key), Path(folder)
    recover_folder(target)
    if tokenizer != TRAIN:
        used = Tokenizer.load(tokenizer)
    elif (target / "tokenizer.json").is_file() and not replace:
        used = Tokenizer.load(target)
        if used.size != vocab_size:
            raise TextError(
                f"{target} was prepared with a vocabulary of {used.size} tokens, and now {vocab_size} are asked for",
                way_out="try another folder, or --replace to make this one anew",
            )
    else:
        used = _learn(corpus, corpus, vocab_size, held_out_share, watch, say)
    made = prepare_shards(
        corpus,
        used,
        target,
        held_out_share=held_out_share,
        progress=_progress(corpus, watch),
        replace=replace,
    )
    if not (target / "tokenizer.json").is_file():
        used.save(target)
    _tell(made, corpus, say)
    return made


# --- private ----------------------------------------------------------------------------------------------------------


def _prepared_folder(sources: Sequence[str]) -> Path | None:
    """The folder of shards that the sources name, if they name one."""
    if len(sources) != 1:
        return None
    folder = Path(sources[0])
    if not (folder / "manifest.json").is_file() or not (folder / "train.bin").is_file():
        return None
    read_manifest(folder)
    return folder


def _tokenizer_of(config: TrainConfig, folder: Path) -> Tokenizer:
    """The tokenizer that prepared shards bring; no key of `data` that was decided then may say otherwise now."""
    manifest = read_manifest(folder)
    defaults = type(config.data)()
    for key in ("tokenizer", "held_out_share", "text_key", "skip_bad", "limit_bytes"):
        given = getattr(config.data, key)
        if given != getattr(defaults, key) and given != manifest.get(key):
            raise ConfigError(
                f"`data.{key}` is {given!r}, but {folder} is already prepared text, where that was decided before",
                way_out=f"try leaving data.{key} out, or cueva prepare with other options",
            )
    tokenizer = Tokenizer.load(folder)
    if config.data.vocab_size not in (None, tokenizer.size):
        raise ConfigError(
            f"`data.vocab_size` is {config.data.vocab_size}, but {folder} was prepared with {tokenizer.size} tokens",
            way_out="try leaving data.vocab_size out",
        )
    if tokenizer.fingerprint != manifest["tokenizer"]:
        raise TextError(
            f"the tokenizer in {folder} is not the one that made its tokens", way_out="try cueva prepare again"
        )
    return tokenizer


def _run_tokenizer(config: TrainConfig, corpus: Corpus, watch: Watch | None, say: Say | None) -> Tokenizer:
    """The tokenizer of a run, made once: a model cannot change its tokens."""
    folder, data = config.directory / "tokenizer", config.data
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.load(folder)
        if data.tokenizer == TRAIN and data.vocab_size not in (None, tokenizer.size):
            raise ConfigError(
                f"`data.vocab_size` is {data.vocab_size}, but this run began with {tokenizer.size} tokens, and a model "
                "cannot change its tokens",
                way_out="try another run.name",
            )
        return tokenizer
    if data.tokenizer == TRAIN:
        documents = corpus if data.limit_bytes is None else _Limited(corpus, data.limit_bytes)
        size = data.vocab_size or config.shape().vocab_size
        tokenizer = _learn(documents, corpus, size, data.held_out_share, watch, say)
    else:
        tokenizer = Tokenizer.load(data.tokenizer)
        config.shape(tokenizer.size)  # refuses a vocabulary that does not fit before the text is read
    tokenizer.save(folder)
    return tokenizer


class _Limited:
    """The first documents of a corpus, up to a number of bytes of UTF-8; at least one."""

    def __init__(self, corpus: Corpus, limit_bytes: int):
        self._corpus, self._limit = corpus, limit_bytes

    def __iter__(self) -> Iterator[Document]:
        read = 0
        for document in self._corpus:
            size = len(document.text.encode("utf-8", "replace"))
            if read and read + size > self._limit:
                return
            read += size
            yield document


def _learn(
    documents: Corpus | _Limited, corpus: Corpus, size: int, share: float, watch: Watch | None, say: Say | None
) -> Tokenizer:
    """Learn a vocabulary from the documents that are trained on; from all of them if every one is held out."""
    for document in documents:
        if not held_out(document.source, share):
            break
    else:
        share = 0.0
    total = _total_bytes(corpus)

    def texts() -> Iterator[str]:
        read = 0
        for document in documents:
            if not held_out(document.source, share):
                yield document.text
            read += len(document.text)
            if watch is not None:
                watch("reading to learn tokens:", "bytes", read, total)
        if say is not None:
            say(f"learning {size:,} tokens from {read:,} characters; 50 million take about half a minute")

    return Tokenizer.train(texts(), size)


def _progress(corpus: Corpus, watch: Watch | None) -> Callable[[Progress], None] | None:
    if watch is None:
        return None
    total = _total_bytes(corpus)
    return lambda done: watch("turning text into tokens:", "bytes", done.bytes, total)


def _total_bytes(corpus: Corpus) -> int | None:
    """How much text there is, where the files say so without being opened."""
    stamps = corpus.stamps()
    if stamps is None or any(stamp.name.endswith((".gz", ".parquet")) for stamp in stamps):
        return None
    return sum(stamp.bytes for stamp in stamps) or None


def _tell(made: Prepared, corpus: Corpus, say: Say | None) -> None:
    """Say what a preparation did."""
    if say is None:
        return
    train, held = made.manifest["train"], made.manifest["held_out"]
    if made.resumed_documents:
        say(f"went on after the {made.resumed_documents:,} documents that an earlier call had done")
    again = " (made before, used again)" if made.reused else ""
    say(
        f"text: {train['documents']:,} documents, {train['tokens']:,} tokens to train on, "
        f"{held['documents']:,} documents, {held['tokens']:,} tokens held out{again}"
    )
    for reason, times in (made.manifest["skipped"] or corpus.skipped).items():
        say(f"left out {times:,} texts: {reason}")
    for note in made.notes:
        say(note)
