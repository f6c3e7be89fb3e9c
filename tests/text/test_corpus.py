"""Documents: what is read, what is refused, what is held out."""

import gzip
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cueva.errors import DependencyError, TextError
from cueva.text import readers
from cueva.text.corpus import Corpus, Document, documents, held_out

LINES = b'{"text": "uno"}\n\n{"text": "dos\\nlineas", "id": 2}\n'


def read(path: Path | str, **options: object) -> list[Document]:
    return list(documents([str(path)], **options))  # type: ignore[arg-type]


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_every_format_gives_the_same_texts(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", LINES)
    put(tmp_path / "a.jsonl.gz", gzip.compress(LINES))
    pq.write_table(pa.table({"text": ["uno", "dos\nlineas"]}), tmp_path / "a.parquet", row_group_size=1)
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        assert [one.text for one in read(tmp_path / name)] == ["uno", "dos\nlineas"]
    folder = tmp_path.name
    assert [one.source for one in read(tmp_path / "a.jsonl")] == [f"{folder}/a.jsonl#1", f"{folder}/a.jsonl#3"]
    assert [one.source for one in read(tmp_path / "a.parquet")] == [f"{folder}/a.parquet#1", f"{folder}/a.parquet#2"]


def test_text_is_kept_as_it_is_but_for_a_byte_order_mark(tmp_path: Path) -> None:
    put(tmp_path / "a.txt", b"\xef\xbb\xbfuno\r\ndos\x00\n")
    assert [one.text for one in read(tmp_path / "a.txt")] == ["uno\r\ndos\x00\n"]
    put(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + LINES)
    assert len(read(tmp_path / "a.jsonl")) == 2


def test_another_key_can_hold_the_text(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", b'{"content": "uno"}\n')
    assert [one.text for one in read(tmp_path / "a.jsonl", text_key="content")] == ["uno"]
    with pytest.raises(TextError, match=r"a\.jsonl, line 1: there is no key 'text'; found 'content'; set text_key"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("line", "reason", "sentence"),
    [
        (b"{broken", "bad JSON", "line 2: not valid JSON"),
        (b"[1, 2]", "bad JSON", "line 2: expected an object with the key 'text', found list"),
        (b'{"tekst": "x"}', "missing key", "line 2: there is no key 'text'; did you mean 'tekst'"),
        (b'{"text": 5}', "not text", "line 2: 'text' holds int, not a string"),
        (b'{"text": null}', "not text", "line 2: 'text' holds nothing"),
        (b'{"text": ""}', "empty", "line 2: 'text' is empty"),
        (b'{"text": "a\\ud83d"}', "half a character", r"line 2: \\ud83d is half of a surrogate pair"),
        (b'{"text": "\xff"}', "bad UTF-8", "line 2: byte 0xff is not valid UTF-8"),
        (b"[" * 100_000, "bad JSON", "line 2: not valid JSON"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_bad_line_is_named_and_can_be_passed_over(
    tmp_path: Path, line: bytes, reason: str, sentence: str, packed: bool
) -> None:
    data = b'{"text": "uno"}\n' + line + b'\n{"text": "tres"}\n'
    path = put(tmp_path / ("a.jsonl.gz" if packed else "a.jsonl"), gzip.compress(data) if packed else data)
    with pytest.raises(TextError, match=sentence) as raised:
        read(path)
    assert str(path) in raised.value.message
    told: list[tuple[str, str]] = []
    corpus = Corpus([str(path)], skip_bad=True, on_bad=lambda *bad: told.append(bad))
    assert [one.source[-2:] for one in corpus] == ["#1", "#3"]
    assert corpus.skipped == {reason: 1}
    assert told[0][0] == reason


def test_bad_utf8_in_a_text_is_named_by_line(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", b"uno\ndos\nt\xe9s\n")
    with pytest.raises(TextError, match=r"a\.txt, line 3: byte 0xe9 is not valid UTF-8"):
        read(path)
    assert read(path, skip_bad=True) == []


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet", "b.py"])
def test_an_empty_file_is_said(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / name, gzip.compress(b"\n\n") if name.endswith("gz") else b"")
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(TextError, match="is empty"):
        read(path)
    corpus = Corpus([str(path)], skip_bad=True)
    assert list(corpus) == []
    assert corpus.skipped == {"empty": 1}


def test_an_empty_init_file_is_how_python_marks_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "__init__.py", b"")
    assert read(tmp_path) == []


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
def test_a_damaged_file_is_said_and_the_next_one_is_read(tmp_path: Path, name: str, keep: float) -> None:
    rows = [f"texto {number} {number**7}" for number in range(20_000)]
    whole = tmp_path / name
    if name.endswith("gz"):
        whole.write_bytes(gzip.compress("".join(json.dumps({"text": row}) + "\n" for row in rows).encode()))
    else:
        pq.write_table(pa.table({"text": rows}), whole, row_group_size=5000)
    data = whole.read_bytes()
    cut = max(1, int(len(data) * keep)) if keep else 0
    # Cut short, or with its middle overwritten.
    whole.write_bytes(
        data[:cut] if keep != 0.3 else data[: len(data) // 2] + b"\xff" * 4000 + data[len(data) // 2 + 4000 :]
    )
    put(tmp_path / "z.txt", b"sana")
    with pytest.raises(TextError, match=r"a\.(jsonl\.gz|parquet)"):
        read(tmp_path)
    corpus = Corpus([str(tmp_path)], skip_bad=True)
    found = list(corpus)
    assert found[-1].text == "sana"
    assert sum(corpus.skipped.values()) >= 1


def test_a_parquet_column_that_is_missing_or_no_text_is_said(tmp_path: Path) -> None:
    pq.write_table(pa.table({"tekst": ["a"], "text": [1]}), tmp_path / "a.parquet")
    with pytest.raises(TextError, match="row 1: 'text' holds int"):
        read(tmp_path / "a.parquet")
    with pytest.raises(TextError, match="no column 'body'; found 'tekst', 'text'"):
        read(tmp_path / "a.parquet", text_key="body")


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LONGEST_LINE", 1000)
    path = put(tmp_path / "a.jsonl.gz", gzip.compress(b'{"text": "' + b"a" * 5000 + b'"}\n'))
    with pytest.raises(TextError, match="line 1: more than 1,000 bytes without an end of line"):
        read(path)


def test_one_line_of_ten_megabytes_is_read(tmp_path: Path) -> None:
    text = "palabra " * 1_250_000
    put(tmp_path / "a.txt", text.encode())
    put(tmp_path / "a.jsonl", json.dumps({"text": text}).encode())
    for name in ("a.txt", "a.jsonl"):
        assert [one.text for one in read(tmp_path / name)] == [text]


def test_a_file_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.txt", b"x")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(TextError, match=r"cannot read .*a\.txt: Permission denied"):
        read(path)


def test_standard_input_is_a_text_that_can_be_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("niño".encode())))
    corpus = Corpus(["-"])
    assert list(corpus) == list(corpus) == [Document("niño", "-")]
    assert corpus.stamps() is None
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(LINES)))
    assert [one.source for one in Corpus(["-:jsonl"])] == ["-#1", "-#3"]


def test_a_data_set_is_streamed_with_its_name_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[object, ...]] = []

    def load_dataset(path: str, name: str | None, *, split: str, streaming: bool) -> datasets.IterableDataset:
        asked.append((path, name, split, streaming))
        return datasets.IterableDataset.from_generator(
            lambda: iter([{"text": "uno"}, {"text": None}, {"text": "tres"}])
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = read("hf:owner/name/conf:test", skip_bad=True)
    assert [(one.source, one.text) for one in found] == [
        ("hf:owner/name/conf:test#1", "uno"),
        ("hf:owner/name/conf:test#3", "tres"),
    ]
    read("hf:owner/name", skip_bad=True)
    assert asked == [("owner/name", "conf", "test", True), ("owner/name", None, "train", True)]
    with pytest.raises(TextError, match="row 1: there is no column 'txt'"):
        read("hf:owner/name", text_key="txt")


def test_a_data_set_out_of_reach_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(TextError, match="cannot read the data set 'cueva-lm/nothing'") as raised:
        read("hf:cueva-lm/nothing")
    assert raised.value.way_out is not None


@pytest.mark.parametrize(("package", "name"), [("pyarrow", "a.parquet"), ("datasets", "hf:owner/name")])
def test_an_absent_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str) -> None:
    put(tmp_path / "a.parquet", b"x")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError, match=r"pip install 'cueva\[data\]'"):
        read(name if name.startswith("hf:") else tmp_path / name)


def test_held_out_documents_are_chosen_by_the_hash_of_their_name() -> None:
    # sha256("a") begins with ca978112ca1bbdca, which is 0.79137 of 2**64. The choice must never change.
    assert held_out("a", 0.7914)
    assert not held_out("a", 0.7913)
    names = [f"texts/{number}.txt" for number in range(20_000)]
    picked = {name for name in names if held_out(name, 0.05)}
    assert 800 < len(picked) < 1200
    assert picked <= {name for name in names if held_out(name, 0.1)}
    assert not any(held_out(name, 0.0) for name in names)


@given(name=st.text(), share=st.floats(0, 1, exclude_max=True))
def test_any_name_can_be_chosen(name: str, share: float) -> None:
    assert held_out(name, share) in (True, False)
