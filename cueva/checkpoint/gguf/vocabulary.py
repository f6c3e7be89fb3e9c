"""How a tokenizer is told to llama.cpp: tokens, kinds, merges, and the name of a way to cut text.

llama.cpp knows byte-level BPE as the model "gpt2" and the cutting of text by a name, not by its expressions. The
tokenizers that `cueva.text` trains cut as DeepSeek-V3 does ("deepseek-v3"); others that are known are named below. A
tokenizer that cuts in another way is written with a warning, because text would get other ids there.

Without a tokenizer the file says "no_vocab" and llama.cpp makes as many tokens without text: ids in, ids out.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cueva.checkpoint.gguf.metadata import Value
from cueva.config import ModelConfig
from cueva.errors import CheckpointError
from cueva.text import Tokenizer

# llama.h: enum llama_token_type.
_NORMAL: Final = 1
_CONTROL: Final = 3
_USER_DEFINED: Final = 4
_UNUSED: Final = 5

_CJK: Final = "[一-龥぀-ゟ゠-ヿ]+"
_CUTTING: Final[Mapping[tuple[str, ...], str]] = {
    # The first expressions of the `Split` steps are enough to tell these apart.
    (r"\p{N}{1,3}", _CJK): "deepseek-v3",
    (r"[\r\n]", r"\s?\p{L}+"): "deepseek-coder",
}


def vocabulary(config: ModelConfig, tokenizer: Tokenizer | None) -> tuple[dict[str, Value], tuple[str, ...]]:
    """The `tokenizer.` keys, and what to warn of.

    Args:
        config: whose `vocab_size` the list of tokens is padded to; its special ids serve where there is no tokenizer.
        tokenizer: byte-level BPE, or None.

    Raises:
        CheckpointError: more tokens than the model has rows, or a tokenizer of another kind.
    """
    if tokenizer is None:
        return {"tokenizer.ggml.model": "no_vocab"}, ()
    definition = _definition(tokenizer)
    model = definition["model"]
    if model.get("type") != "BPE" or not _is_byte_level(definition):
        raise CheckpointError(
            f"only byte-level BPE tokenizers can be written as GGUF, but this one is {model.get('type')!r}",
            way_out="try tokenizer=None: the file then takes and gives token ids",
        )
    if tokenizer.size > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.size} tokens, but the model only {config.vocab_size} (`vocab_size`)"
        )
    tokens = [f"[PAD{token}]" for token in range(config.vocab_size)]
    kinds = [_UNUSED] * config.vocab_size
    for text, token in model["vocab"].items():
        tokens[token], kinds[token] = text, _NORMAL
    for added in definition["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = _CONTROL if added["content"] in tokenizer.control else _USER_DEFINED
    cutting = _cutting(definition)
    keys: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cutting or "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
    }
    special = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "padding": tokenizer.pad_id}
    keys |= {f"tokenizer.ggml.{name}_token_id": token for name, token in special.items() if token is not None}
    keys["tokenizer.ggml.add_bos_token"] = tokenizer.adds_bos
    if tokenizer.chat_template is not None:
        keys["tokenizer.chat_template"] = tokenizer.chat_template
    warned = () if cutting else ("the tokenizer cuts text in a way llama.cpp has no name for: ids of text will differ",)
    return keys, warned


# --- private ----------------------------------------------------------------------------------------------------------


def _definition(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer.json that the tokenizer writes."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        return json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))


def _steps(definition: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    first = definition.get("pre_tokenizer") or {}
    return first.get("pretokenizers", [first])


def _is_byte_level(definition: Mapping[str, Any]) -> bool:
    return any(step.get("type") == "ByteLevel" for step in _steps(definition))


def _cutting(definition: Mapping[str, Any]) -> str | None:
    splits = [step["pattern"].get("Regex") for step in _steps(definition) if step.get("type") == "Split"]
    return _CUTTING.get(tuple(splits[:2]))
