"""Preparing token shards: once, whole or not at all, and refused with the difference."""

from pathlib import Path

import pytest

from cueva.errors import TextError
from cueva.text import Corpus, Document, Packing, Progress, Tokenizer, TokenShards, prepare
from cueva.text.corpus import choice, held_out
from tests.text.prepared import contents, run
from tests.text.test_tokenizer import changed

FILES = ["held_out.bin", "held_out.index", "held_out.sources", "inputs.json", "manifest.json"]
FILES += ["train.bin", "train.index", "train.sources"]


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
