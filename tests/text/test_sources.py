"""What a name on the command line stands for."""

import sys
from pathlib import Path

import pytest

from cueva.errors import TextError
from cueva.text.corpus import Corpus
from cueva.text.sources import find


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def names(*sources: str | Path) -> list[str]:
    return [source.name for source in find([str(source) for source in sources])]


def test_a_folder_is_searched_in_sorted_order_for_the_known_suffixes(tmp_path: Path) -> None:
    root = tmp_path / "texts"
    for name in ("b.md", "a.txt", "sub/z.py", "sub/deep/y.jsonl", "other.bin", ".git/c.txt", ".hidden.txt", "UP.TXT"):
        write(root / name)
    assert names(root) == ["texts/UP.TXT", "texts/a.txt", "texts/b.md", "texts/sub/z.py", "texts/sub/deep/y.jsonl"]


def test_names_do_not_depend_on_how_a_path_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "texts" / "sub" / "a.txt")
    write(tmp_path / "texts" / "b.txt")
    monkeypatch.chdir(tmp_path / "texts")
    spelled = [names("."), names(tmp_path / "texts"), names("../texts/"), names("**/*.txt")]
    assert sorted(spelled[0]) == ["texts/b.txt", "texts/sub/a.txt"]
    assert all(sorted(one) == sorted(spelled[0]) for one in spelled)
    assert names("b.txt") == names(tmp_path / "texts" / "b.txt") == ["texts/b.txt"]


def test_a_pattern_gives_files_and_searches_folders(tmp_path: Path) -> None:
    for name in ("one/a.txt", "one/b.bin", "two/c.txt", "d.weird"):
        write(tmp_path / name)
    root = tmp_path.name
    assert names(f"{tmp_path}/*") == [f"{root}/d.weird", f"{root}/one/a.txt", f"{root}/two/c.txt"]
    assert names(f"{tmp_path}/**/*.txt") == [f"{root}/one/a.txt", f"{root}/two/c.txt"]


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "texts" / "a.txt")
    assert names(tmp_path / "texts", tmp_path / "texts" / "a.txt", f"{tmp_path}/texts/*.txt") == ["texts/a.txt"]


def test_a_file_may_have_any_suffix_when_it_is_named(tmp_path: Path) -> None:
    assert [one.text for one in Corpus([str(write(tmp_path / "notes.rst", "hola"))])] == ["hola"]
    assert [one.text for one in Corpus([str(write(tmp_path / "odd[1].txt", "corchetes"))])] == ["corchetes"]


@pytest.mark.parametrize("name", ["nowhere.txt", "nothing/*.txt", "hf:", "hf:owner/name:"])
def test_a_name_that_stands_for_nothing_is_said(name: str) -> None:
    with pytest.raises(TextError, match=r"no file|names no data set"):
        names(name)


def test_a_folder_without_text_is_said(tmp_path: Path) -> None:
    write(tmp_path / "texts" / "a.bin")
    with pytest.raises(TextError, match=r"holds no text: looked for \.txt, \.md"):
        names(tmp_path / "texts")
    with pytest.raises(TextError, match="no text was named"):
        Corpus([])


def test_the_standard_library_is_a_corpus_of_sources_and_reference_texts() -> None:
    corpus = Corpus(["python"])
    found = {one.source: one.text for one in corpus}
    assert list(found) == [one.source for one in corpus]
    assert "class BaseEventLoop" in found["python/asyncio/base_events.py"]
    assert found["python/pydoc_data/topics/with"].startswith('The "with" statement')
    assert sum(map(len, found.values())) > 8_000_000
    top = {name.split("/")[1].removesuffix(".py") for name in found}
    assert top <= sys.stdlib_module_names
    assert not any("/test/" in name or "/tests/" in name or "site-packages" in name for name in found)


def test_a_python_without_sources_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(TextError, match="has no sources"):
        names("python")
