"""Preparing token shards: whole or not at all, once, and the same after any interruption."""

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
from cueva.text import Corpus, Document, Packing, Prepared, Progress, Tokenizer, TokenShards, prepare, writing
from cueva.text.corpus import choice, held_out
from tests.text.test_tokenizer import changed

FILES = ["held_out.bin", "held_out.index", "held_out.sources", "inputs.json", "manifest.json"]
FILES += ["train.bin", "train.index", "train.sources"]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:02}.txt").write_text(f"texto {number}: " + "ñandú " * (number % 7 * 20), encoding="utf-8")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run(texts: Path, tokenizer: Tokenizer, folder: Path, **options: Any) -> Prepared:
    options = {"held_out_share": 0.1, **options}
    return prepare(Corpus([str(texts)]), tokenizer, folder, **options)


def test_documents_go_to_the_split_that_their_name_decides(texts: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    seen: list[Progress] = []
    done = run(texts, tokenizer, tmp_path / "tokens", progress=seen.append, batch_bytes=2000)
    assert sorted(contents(tmp_path / "tokens")) == FILES
    assert not (tmp_path / ".tokens.unfinished").exists()
    train, other = TokenShards.open(done.folder), TokenShards.open(done.folder, "held_out")
    assert not any(held_out(source, 0.1) for source in train.sources)
    assert all(held_out(source, 0.1) for source in other.sources)
    assert len(train) + len(other) == 60
    assert done.manifest["train"] == {"documents": len(train), "tokens": len(train.tokens), "bytes": train.bytes}
    assert len(seen) > 3
    assert seen[-1][:3] == (60, train.bytes + other.bytes, len(train.tokens) + len(other.tokens))
    assert (done.reused, done.resumed_documents, done.notes) == (False, 0, ())


def test_the_result_does_not_depend_on_batches(texts: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name, size in (("a", 1), ("b", 3000), ("c", 10**9)):
        run(texts, tokenizer, tmp_path / name, batch_bytes=size)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


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
    texts: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Not at random: before the n-th call that syncs, renames, links or removes something, for every n."""
    for path in sorted(texts.iterdir())[3:]:
        path.unlink()
    expected = tmp_path / "expected"
    run(texts, tokenizer, expected)
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


# --- using again ------------------------------------------------------------------------------------------------------


def test_a_finished_folder_is_used_again_without_reading(texts: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    run(texts, tokenizer, tmp_path / "tokens")
    before = contents(tmp_path / "tokens")
    done = run(texts, tokenizer, tmp_path / "tokens", progress=lambda _: pytest.fail("nothing is encoded"))
    assert done.reused
    assert contents(tmp_path / "tokens") == before


def test_a_folder_made_from_something_else_is_refused_with_the_difference(
    texts: Path, tokenizer: Tokenizer, saved: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tokens"
    run(texts, tokenizer, folder)
    other = changed(saved, tmp_path, bos_token="<think>", eos_token="</think>")
    with pytest.raises(TextError, match="from something else: the tokenizer is another one") as raised:
        run(texts, other, folder)
    assert "replace=True" in str(raised.value)
    with pytest.raises(TextError, match=r"held_out_share was 0\.1 and is 0\.2"):
        run(texts, tokenizer, folder, held_out_share=0.2)
    with pytest.raises(TextError, match=r"sources was .*and is"):
        prepare(Corpus([str(texts), "python"]), tokenizer, folder, held_out_share=0.1)
    (texts / "07.txt").write_text("otro", encoding="utf-8")
    with pytest.raises(TextError, match=r"texts/07\.txt changed since"):
        run(texts, tokenizer, folder)
    (texts / "07.txt").unlink()
    with pytest.raises(TextError, match=r"texts/07\.txt is gone since"):
        run(texts, tokenizer, folder)
    (texts / "99.txt").write_text("nuevo", encoding="utf-8")
    with pytest.raises(TextError, match=r"texts/07\.txt is gone since, and 1 more differ"):
        run(texts, tokenizer, folder)
    done = run(texts, tokenizer, folder, replace=True)
    assert not done.reused
    assert done.manifest["train"]["documents"] + done.manifest["held_out"]["documents"] == 60


def test_documents_from_a_program_are_compared_by_their_hash(tokenizer: Tokenizer, tmp_path: Path) -> None:
    docs = [Document(f"texto {number}", f"d/{number}") for number in range(5)]
    prepare(docs, tokenizer, tmp_path / "tokens", held_out_share=0)
    assert prepare(iter(docs), tokenizer, tmp_path / "tokens", held_out_share=0).reused
    with pytest.raises(TextError, match="the documents are not the same"):
        prepare(docs[:4], tokenizer, tmp_path / "tokens", held_out_share=0)


def test_a_damaged_folder_is_not_used_again(texts: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    run(texts, tokenizer, folder)
    expected = contents(folder)
    (folder / "train.bin").write_bytes(b"x" + expected["train.bin"][1:])
    with pytest.raises(TextError, match=r"train\.bin was altered"):
        run(texts, tokenizer, folder)
    assert not run(texts, tokenizer, folder, replace=True).reused
    assert contents(folder) == expected


def test_a_folder_of_something_else_is_left_alone(texts: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("querida")
    for replace in (False, True):
        with pytest.raises(TextError, match=r"exists and is not prepared text"):
            run(texts, tokenizer, tmp_path / "mine", replace=replace)
    run(texts, tokenizer, tmp_path / "tokens")
    tokenizer.save(tmp_path / "tokens")
    run(texts, tokenizer, tmp_path / "tokens", held_out_share=0.3, replace=True)
    run(texts, tokenizer, tmp_path / "tokens", replace=True)
    (tmp_path / "tokens" / "letter.txt").write_text("querida")
    assert run(texts, tokenizer, tmp_path / "tokens").reused
    with pytest.raises(TextError, match=r"holds letter\.txt, which is no part of prepared text and would be deleted"):
        run(texts, tokenizer, tmp_path / "tokens", held_out_share=0.2, replace=True)
    for folder in ("mine", "tokens"):
        assert (tmp_path / folder / "letter.txt").read_text() == "querida"
    (tmp_path / "empty").mkdir()
    assert run(texts, tokenizer, tmp_path / "empty").manifest["train"]["documents"] > 0


def test_what_was_passed_over_is_in_the_manifest(texts: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (texts / "bad.txt").write_bytes(b"\xff")
    (texts / "empty.txt").write_bytes(b"")
    with pytest.raises(TextError, match=r"bad\.txt, line 1"):
        run(texts, tokenizer, tmp_path / "tokens")
    corpus = Corpus([str(texts)], skip_bad=True)
    assert prepare(corpus, tokenizer, tmp_path / "tokens", held_out_share=0.1).manifest["skipped"] == {
        "bad UTF-8": 1,
        "empty": 1,
    }
    with pytest.raises(TextError, match=r"2 unusable texts were passed over then"):
        run(texts, tokenizer, tmp_path / "tokens")


def test_texts_that_change_while_they_are_read_are_noticed(texts: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TextError, match="changed while they were read"):
        run(texts, tokenizer, tmp_path / "tokens", progress=lambda _: (texts / "00.txt").write_text("otro"))
    assert not (tmp_path / "tokens").exists()


# --- small corpora ----------------------------------------------------------------------------------------------------


def test_an_empty_corpus_is_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TextError, match="the corpus is empty"):
        prepare([], tokenizer, tmp_path / "tokens", held_out_share=0.1)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "__init__.py").write_text("")
    with pytest.raises(TextError, match="the corpus is empty"):
        run(tmp_path / "texts", tokenizer, tmp_path / "tokens")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts"]


@pytest.mark.parametrize(("share", "kept", "note"), [(1e-9, 5, "picked no document"), (1 - 1e-9, 1, "picked every")])
def test_neither_side_is_empty_when_there_are_two_documents(
    tokenizer: Tokenizer, tmp_path: Path, share: float, kept: int, note: str
) -> None:
    docs = [Document(f"texto {number} " * (number + 1), f"d/{number}") for number in range(6)]
    done = prepare(docs, tokenizer, tmp_path / "tokens", held_out_share=share)
    train, other = TokenShards.open(done.folder), TokenShards.open(done.folder, "held_out")
    by_hash = sorted((one.source for one in docs), key=choice)
    assert list(other.sources) == [one.source for one in docs if one.source in by_hash[: 6 - kept]]
    assert list(train.sources) == [one.source for one in docs if one.source in by_hash[6 - kept :]]
    for shards in (train, other):
        texts = {one.source: one.text for one in docs}
        for place, source in enumerate(shards.sources):
            assert tokenizer.decode(shards.document(place).tolist()) == texts[source]
    assert note in done.notes[0]


def test_a_single_document_is_trained_on_and_that_is_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name, share in (("a", 0.01), ("b", 0.999999)):
        done = prepare([Document("uno dos tres", "d")], tokenizer, tmp_path / name, held_out_share=share)
        assert len(TokenShards.open(done.folder)) == 1
        with pytest.raises(TextError, match=r"no documents of .* are held out: the corpus is a single document"):
            TokenShards.open(done.folder, "held_out")
        with pytest.raises(TextError, match="one row takes 129"):
            Packing(TokenShards.open(done.folder), 128, 0)
    assert done.manifest["held_out"]["documents"] == 0


def test_a_share_of_nothing_holds_nothing_out(texts: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    done = run(texts, tokenizer, tmp_path / "tokens", held_out_share=0)
    assert (done.manifest["train"]["documents"], done.notes) == (60, ())
    with pytest.raises(TextError, match="prepared with a share of 0"):
        TokenShards.open(done.folder, "held_out")


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_said(tokenizer: Tokenizer, tmp_path: Path, share: float) -> None:
    with pytest.raises(TextError, match="from 0 to below 1"):
        prepare([], tokenizer, tmp_path / "tokens", held_out_share=share)


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
