"""The files beside a tokenizer.json, in the many forms in which they are published."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cueva.errors import TextError
from cueva.text import Tokenizer


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A tokenizer.json and nothing else."""
    shutil.copy(saved / "tokenizer.json", tmp_path)
    return tmp_path


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    (folder / name).write_text(text, encoding="utf-8")


BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


@pytest.mark.parametrize("form", ["strings", "objects", "special map", "ids", "list of ids", "model ids"])
def test_begin_and_end_are_found_in_every_form(folder: Path, form: str) -> None:
    match form:
        case "strings":
            write(folder, "tokenizer_config.json", {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS})
        case "objects":
            objects = {
                name: {"__type": "AddedToken", "content": text}
                for name, text in (("bos_token", BOS), ("eos_token", EOS))
            }
            write(folder, "tokenizer_config.json", {**objects, "pad_token": {"content": EOS}, "unk_token": None})
        case "special map":
            write(folder, "tokenizer_config.json", {"bos_token": None, "eos_token": EOS})
            write(folder, "special_tokens_map.json", {"bos_token": {"content": BOS}, "pad_token": EOS})
        case "ids":
            write(folder, "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1})
        case "list of ids":
            write(folder, "generation_config.json", {"bos_token_id": 0, "eos_token_id": [1], "pad_token_id": 1})
        case "model ids":
            write(folder, "generation_config.json", {"temperature": 0.6})
            write(folder, "config.json", {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1})
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (0, (1,), 1)
    assert (tokenizer.bos_token, tokenizer.eos_token) == (BOS, EOS)


def test_every_end_token_counts_and_the_tokenizers_own_comes_first(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"bos_token": BOS, "eos_token": EOS})
    write(folder, "generation_config.json", {"eos_token_id": [4, 1, 6]})
    assert Tokenizer.load(folder).eos_ids == (1, 4, 6)


def test_without_begin_or_end_there_are_none(folder: Path) -> None:
    write(folder, "generation_config.json", {"bos_token_id": None, "eos_token_id": -1})
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id, tokenizer.chat_template) == (None, (), None, None)
    assert (tokenizer.bos_token, tokenizer.eos_id, tokenizer.adds_bos) == ("", None, False)
    assert tokenizer.encode("hola", bos=True) == tokenizer.encode("hola")
    with pytest.raises(TextError, match="has no chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "hola"}])


def test_a_file_may_be_named_in_place_of_its_folder(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"bos_token": BOS})
    assert Tokenizer.load(folder / "tokenizer.json").bos_id == 0


def test_whether_a_text_begins_with_the_begin_token_is_stated_or_seen(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"bos_token": BOS, "add_bos_token": False})
    assert not Tokenizer.load(folder).adds_bos
    write(folder, "tokenizer_config.json", {"bos_token": BOS})
    assert Tokenizer.load(folder).adds_bos  # the post-processor of the file does it
    definition = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    write(folder, "tokenizer.json", {**definition, "post_processor": None})
    assert not Tokenizer.load(folder).adds_bos


def test_templates_are_found_in_every_form(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"chat_template": "one"})
    assert Tokenizer.load(folder).chat_template == Tokenizer.load(folder).tool_template == "one"
    named = [{"name": "default", "template": "two"}, {"name": "tool_use", "template": "with tools"}]
    write(folder, "tokenizer_config.json", {"chat_template": named})
    assert (Tokenizer.load(folder).chat_template, Tokenizer.load(folder).tool_template) == ("two", "with tools")
    write(folder, "chat_template.jinja", "three")
    assert (Tokenizer.load(folder).chat_template, Tokenizer.load(folder).tool_template) == ("three", "with tools")
    write(folder, "additional_chat_templates/tool_use.jinja", "other tools")
    assert Tokenizer.load(folder).tool_template == "other tools"


def test_named_templates_survive_saving(folder: Path, tmp_path: Path) -> None:
    named = [{"name": "default", "template": "two"}, {"name": "tool_use", "template": "with tools"}]
    write(folder, "tokenizer_config.json", {"chat_template": named, "auto_map": {"AutoTokenizer": "evil.Tokenizer"}})
    Tokenizer.load(folder).save(tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == named
    assert "auto_map" not in config
    assert Tokenizer.load(tmp_path / "copy").tool_template == "with tools"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("tokenizer_config.json", "{", "tokenizer_config.json is not valid JSON"),
        ("tokenizer_config.json", [1], "holds list, but an object is expected"),
        ("tokenizer_config.json", {"bos_token": 5}, "`bos_token` in .* is 5"),
        ("tokenizer_config.json", {"eos_token": "<nothing>"}, "the eos token '<nothing>' is not in the vocabulary"),
        ("tokenizer_config.json", {"chat_template": 5}, "neither a string nor a list"),
        ("tokenizer_config.json", {"chat_template": [{"name": "a"}]}, "neither a string nor a list"),
        ("tokenizer_config.json", {"chat_template": [{"name": "a", "template": 1}]}, "that is no string"),
        ("generation_config.json", {"eos_token_id": "1"}, "`eos_token_id` in .* is '1'; a whole number"),
        ("config.json", {"bos_token_id": [True]}, r"`bos_token_id` in .* is \[True\]"),
    ],
)
def test_a_companion_that_is_not_what_its_name_says_is_said(
    folder: Path, name: str, content: Any, sentence: str
) -> None:
    write(folder, name, content)
    with pytest.raises(TextError, match=sentence):
        Tokenizer.load(folder)


def test_a_pad_token_that_only_exists_in_the_settings_is_none(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"pad_token": "[PAD]"})
    assert Tokenizer.load(folder).pad_id is None
