"""Preparations that are killed, or meet a full disk: the same bytes in the end."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cueva.errors import CheckpointError, TextError
from cueva.text import Corpus, Document, Progress, Tokenizer, TokenShards, prepare, writing
from tests.text.prepared import contents, run

# --- interruptions ----------------------------------------------------------------------------------------------------


def forked(work: Callable[[], object]) -> int:
    """Start a child that does the work and exits."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_killed_at_random_moments_it_goes_on_and_ends_with_the_same_bytes(
    texts: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    expected = tmp_path / "expected"
    run(texts, tokenizer, expected)
    draw = random.Random(11)
    folder = tmp_path / "tokens"
    killed = 0

    def work() -> None:
        run(texts, tokenizer, folder, batch_bytes=300, save_seconds=0.0, progress=lambda _: time.sleep(0.002))

    for _ in range(40):
        child = forked(work)
        time.sleep(draw.uniform(0.0, 0.12))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            assert status == 0
            break
        killed += 1
        assert not folder.exists() or contents(folder) == contents(expected), "whole, or not there"
    done = run(texts, tokenizer, folder)
    assert contents(folder) == contents(expected)
    assert killed >= 3
    assert done.reused or done.resumed_documents > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_killed_before_any_change_to_the_disk_it_goes_on_and_ends_with_the_same_bytes(
    texts: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at random: before the n-th call that syncs, renames, links or removes something, for every n."""
    for path in sorted(texts.iterdir())[3:]:
        path.unlink()
    expected = tmp_path / "expected"
    run(texts, tokenizer, expected)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for n in range(1, 200):
        folder = tmp_path / f"at-{n}" / "tokens"

        def work(n: int = n, folder: Path = folder) -> None:
            left = n

            def counted(real: Callable[..., Any]) -> Callable[..., Any]:
                def call(*args: Any, **kwargs: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*args, **kwargs)

                return call

            # What is not synced survives a kill of the process, so syncing would only cost time here.
            os.fsync = lambda _: None
            for name in ("fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir", "truncate", "ftruncate"):
                setattr(os, name, counted(getattr(os, name)))
            run(texts, tokenizer, folder, batch_bytes=200, save_seconds=0.0)

        status = os.waitpid(forked(work), 0)[1]
        run(texts, tokenizer, folder)
        assert contents(folder) == contents(expected), f"killed before call {n}"
        assert not (folder.parent / ".tokens.unfinished").exists()
        if not os.WIFSIGNALED(status):
            break
    assert 20 < n < 199


class InterruptedError(Exception):
    """What a test throws into a preparation."""


def interrupt(texts: Path, tokenizer: Tokenizer, folder: Path, after: int, **options: Any) -> None:
    def stop(progress: Progress) -> None:
        if progress.documents >= after:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(texts, tokenizer, folder, progress=stop, batch_bytes=1, save_seconds=0.0, **options)


def test_documents_done_are_not_encoded_again(texts: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    interrupt(texts, tokenizer, tmp_path / "tokens", 25)
    encoded: list[str] = []

    class Counting:
        def __init__(self) -> None:
            self.size, self.fingerprint = tokenizer.size, tokenizer.fingerprint
            self.bos_id, self.eos_id = tokenizer.bos_id, tokenizer.eos_id

        def encode_batch(self, batch: list[str], **options: bool) -> list[list[int]]:
            encoded.extend(batch)
            return tokenizer.encode_batch(batch, **options)

    done = prepare(Corpus([str(texts)]), Counting(), tmp_path / "tokens", held_out_share=0.1)  # type: ignore[arg-type]
    assert done.resumed_documents == 25
    assert len(encoded) == 35


def test_an_unfinished_preparation_of_something_else_is_begun_anew(
    texts: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    interrupt(texts, tokenizer, tmp_path / "tokens", 25)
    (texts / "00.txt").write_text("otro texto", encoding="utf-8")
    done = run(texts, tokenizer, tmp_path / "tokens")
    assert done.resumed_documents == 0
    assert done.notes == ("an unfinished preparation of something else was discarded",)
    assert tokenizer.decode(TokenShards.open(done.folder).document(0).tolist()) == "otro texto"


def test_documents_that_changed_behind_an_unfinished_preparation_are_noticed(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Documents from a program have no sizes and times, so they are compared by their hash."""

    def stream(last: str) -> Iterator[Document]:
        for number in range(10):
            yield Document(f"texto {number}", f"d/{number}")
        yield Document(last, "d/last")

    def stop(progress: Progress) -> None:
        if progress.documents == 5:
            raise InterruptedError

    options: dict[str, Any] = {"held_out_share": 0.0, "batch_bytes": 1, "save_seconds": 0.0}
    with pytest.raises(InterruptedError):
        prepare(stream("x"), tokenizer, tmp_path / "tokens", progress=stop, **options)
    with pytest.raises(TextError, match="differ from those of the unfinished preparation") as raised:
        prepare([Document("otra", "d/0"), *stream("x")], tokenizer, tmp_path / "tokens", **options)
    assert "deleting that folder" in str(raised.value)
    assert prepare(stream("y"), tokenizer, tmp_path / "tokens", **options).resumed_documents == 5


def test_two_at_once_do_not_write_over_each_other(texts: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")

    def again(_: Progress) -> None:
        with pytest.raises(TextError, match="another process is preparing"):
            run(texts, tokenizer, tmp_path / "tokens")

    run(texts, tokenizer, tmp_path / "tokens", progress=again)


# --- disks ------------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_leaves_nothing_half_made(
    texts: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tokens"
    real = os.fsync
    calls = iter(range(1000))

    def full(descriptor: int) -> None:
        if next(calls) == 20:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="no room to write"):
        run(texts, tokenizer, folder, batch_bytes=1, save_seconds=0.0)
    assert not folder.exists()
    monkeypatch.undo()
    assert run(texts, tokenizer, folder).resumed_documents > 0


def test_a_place_that_cannot_be_written_is_said(texts: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        run(texts, tokenizer, tmp_path / "file" / "tokens")


def test_a_file_system_without_links_gets_copies(
    texts: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(texts, tokenizer, tmp_path / "a")

    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(writing.os, "link", no_links)
    run(texts, tokenizer, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_work_left_by_a_kill_at_the_very_end_never_reaches_into_the_finished_folder(
    texts: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finished files and the work can be the same files on the disk, under two names."""
    folder, work = tmp_path / "tokens", tmp_path / ".tokens.unfinished"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        run(texts, tokenizer, folder)
    assert work.exists()
    open_files = TokenShards.open(folder)
    tokens = open_files.tokens.copy()
    (texts / "00.txt").write_text("otro", encoding="utf-8")
    run(texts, tokenizer, folder, replace=True)
    assert (open_files.tokens == tokens).all()
    assert json.loads((folder / "manifest.json").read_text())["train"]["documents"] == len(TokenShards.open(folder))
