"""Text becomes tokens: documents, a tokenizer, chat templates, token shards and rows for training.

The files, in the order in which things happen: `sources` finds what a name means, `readers` reads it, `corpus` joins
both; `training` learns a vocabulary, `published` reads someone else's, `tokenizer` applies one, `decoding` goes back to
text; `template` and `chat` turn a conversation into tokens; `preparing` writes documents as shards, `shards` reads
them, `packing` cuts them into rows.

Each name is imported when it is first asked for. Nothing here imports torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cueva.text.chat import render_chat
    from cueva.text.corpus import Corpus, Document, documents, held_out
    from cueva.text.decoding import StreamDecoder
    from cueva.text.default_template import DEFAULT_TEMPLATE
    from cueva.text.packing import PackedRow, Packing, sequential
    from cueva.text.preparing import Prepared, Progress, prepare
    from cueva.text.shards import TokenShards, tokenize
    from cueva.text.template import vet
    from cueva.text.tokenizer import Tokenizer

__all__ = [
    "DEFAULT_TEMPLATE",
    "Corpus",
    "Document",
    "PackedRow",
    "Packing",
    "Prepared",
    "Progress",
    "StreamDecoder",
    "TokenShards",
    "Tokenizer",
    "documents",
    "held_out",
    "prepare",
    "render_chat",
    "sequential",
    "tokenize",
    "vet",
]

_HOME = {
    "DEFAULT_TEMPLATE": "default_template",
    "render_chat": "chat",
    "Corpus": "corpus",
    "Document": "corpus",
    "documents": "corpus",
    "held_out": "corpus",
    "StreamDecoder": "decoding",
    "PackedRow": "packing",
    "Packing": "packing",
    "sequential": "packing",
    "Prepared": "preparing",
    "Progress": "preparing",
    "prepare": "preparing",
    "TokenShards": "shards",
    "tokenize": "shards",
    "vet": "template",
    "Tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cueva.text' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"cueva.text.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
