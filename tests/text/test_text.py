"""What the folder offers."""

import subprocess
import sys
from pathlib import Path

import pytest

from cueva import text

ROOT = Path(__file__).resolve().parents[2]


def test_every_name_on_offer_is_there() -> None:
    for name in text.__all__:
        assert getattr(text, name) is not None
        assert name in dir(text)
    with pytest.raises(AttributeError, match=r"it offers .*Tokenizer"):
        _ = text.Tokeniser


def test_importing_the_folder_brings_in_neither_torch_nor_peers() -> None:
    code = (
        "import sys, cueva.text\n"
        "light = set(sys.modules)\n"
        "for name in cueva.text.__all__: getattr(cueva.text, name)\n"
        "print(*({'numpy', 'tokenizers', 'jinja2'} & light))\n"
        "print(*({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n\n"
