"""Models as GGUF files that llama.cpp and its kin open: the door.

`metadata.py` says what the file claims about the model and refuses shapes that llama.cpp would compute differently,
`tensors.py` which tensors it holds, `vocabulary.py` how the tokenizer is told, `write.py` in which number formats and
how the file is written. Needs the package `gguf` (`pip install 'cueva[gguf]'`).
"""

from cueva.checkpoint.gguf.write import TYPES, GGUFReport, write_gguf

__all__ = ["TYPES", "GGUFReport", "write_gguf"]
