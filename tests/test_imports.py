"""The order of the folders, what importing costs, and what no file may import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cueva"
ORDER = [
    "errors",
    "files",
    "config",
    "text",
    "kernels",
    "model",
    "train",
    "checkpoint",
    "engine",
    "study",
    "api",
    "cli",
]
FACE = {"__init__", "__main__"}
# Imported where they are used: each costs more to import than all of cueva, or comes with an extra.
LATE = {"datasets", "pyarrow", "zstandard", "matplotlib", "rich", "huggingface_hub", "prompt_toolkit", "transformers"}
FORBIDDEN = {"pickle", "cPickle", "_pickle", "dill", "marshal", "shelve", "joblib"}

FILES = sorted(PACKAGE.rglob("*.py"))


class Import(NamedTuple):
    name: str
    line: int
    late: bool
    """Inside a function, or under `if TYPE_CHECKING`: not run when the module is imported."""


def imports(path: Path) -> Iterator[Import]:
    package = path.relative_to(ROOT).parent.parts

    def walk(node: ast.AST, late: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = list(package[: len(package) - child.level + 1]) if child.level else []
                base += (child.module or "").split(".") if child.module else []
                # `from cueva import text` names a folder in its list of names, `from cueva.text import x` before it.
                names = [[*base, alias.name] for alias in child.names] if len(base) == 1 else [base]
                yield from (Import(".".join(name), child.lineno, late) for name in names)
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            guarded = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            yield from walk(child, late or inner or guarded)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def stage(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_folder_has_its_place_in_the_order() -> None:
    assert {stage(path) for path in FILES} - FACE <= set(ORDER)


@pytest.mark.parametrize("path", [path for path in FILES if stage(path) not in FACE], ids=ids)
def test_imports_look_upstream_only(path: Path) -> None:
    place = ORDER.index(stage(path))
    for found in imports(path):
        parts = found.name.split(".")
        if parts[0] != "cueva":
            continue
        where = f"{ids(path)}:{found.line} imports {found.name}"
        if len(parts) == 1 or parts[1].startswith("__"):
            assert place >= ORDER.index("api"), f"{where}: only api and cli may use the public face"
            continue
        assert parts[1] in ORDER, f"{where}, which is in no known folder"
        assert ORDER.index(parts[1]) <= place, f"{where}, which is downstream"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_costly_packages_are_imported_where_they_are_used(path: Path) -> None:
    for found in imports(path):
        top = found.name.split(".")[0]
        assert found.late or top not in LATE, f"{ids(path)}:{found.line} imports {top} at the top"
        if stage(path) in {"errors", "files", "config", "text", "cli"}:
            assert found.late or top != "torch", f"{ids(path)}:{found.line}: {stage(path)} has to do without torch"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_nothing_can_run_code_out_of_a_file(path: Path) -> None:
    """No unpickling, no evaluation: a model directory from a stranger is data."""
    for found in imports(path):
        assert found.name.split(".")[0] not in FORBIDDEN, f"{ids(path)}:{found.line} imports {found.name}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "torch.save", "eval", "exec", "compile", "__import__"}, (
                f"{ids(path)}:{node.lineno} calls {called}"
            )


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def seconds_beyond_torch(names: str) -> float:
    """CPU seconds of importing cueva and some of its names after torch and numpy: the median of three processes."""
    code = (
        "import time, torch, numpy\n"
        "began = time.process_time()\n"
        "import cueva\n"
        f"for name in {names}: getattr(cueva, name)\n"
        "print(time.process_time() - began)"
    )
    # The least of three: a busy machine only ever adds.
    return min(float(python(code)) for _ in range(3))


def test_import_cueva_adds_next_to_nothing_to_torch() -> None:
    """At most 0.3 s is promised; nothing is imported before it is asked for, so it is a few milliseconds."""
    assert seconds_beyond_torch("()") <= 0.03


def test_what_loading_and_generating_need_adds_little_to_torch() -> None:
    assert seconds_beyond_torch("['load', 'save', 'Engine', 'Sampling']") <= 0.45


def test_importing_the_face_brings_in_no_server_plots_hub_or_peers() -> None:
    code = (
        "import sys, cueva\n"
        "for name in cueva.__all__: getattr(cueva, name)\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    loaded = set(python(code).split())
    unwanted = {"matplotlib", "huggingface_hub", "transformers", "datasets", "pyarrow", "pandas", "fastapi", "uvicorn"}
    unwanted |= {"rich", "typer", "prompt_toolkit", "httpx", "httpx2", "llama_cpp"}
    assert not loaded & unwanted


def test_import_cueva_alone_imports_nothing_of_weight() -> None:
    assert python("import sys, cueva; print('torch' in sys.modules, 'numpy' in sys.modules)") == "False False"


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from cueva.cli import main\n"
        "for words in (['--help'], ['train', '--help'], ['generate', '--help'], ['--version']):\n"
        "    try: main(words)\n"
        "    except SystemExit as leaving: assert not leaving.code, leaving.code\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    assert python(code).splitlines()[-1] == "False False"


def test_the_folder_train_can_be_called_whoever_imported_it_first() -> None:
    code = (
        "import cueva.train, cueva\n"
        "from cueva.train import TrainConfig\n"
        "assert callable(cueva.train) and cueva.train.TrainConfig is TrainConfig is cueva.TrainConfig\n"
        "print('fine')"
    )
    assert python(code) == "fine"
