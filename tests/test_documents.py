"""Documents stay true: links lead somewhere, versions agree, what a reader is told to type exists."""

import re
import tomllib
from pathlib import Path

import pytest

import cueva

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_inside_the_repository_leads_to_a_file(path: Path) -> None:
    targets = [link for link in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in link]
    missing = [link for link in targets if not (path.parent / link).exists()]
    assert not missing, f"{path.name} links to {missing}"


def test_the_index_of_documents_is_complete() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    written = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert written == set(LINK.findall(index))


def test_one_version_everywhere() -> None:
    assert f"version: {cueva.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dynamic"] == ["version"]


def test_every_dependency_range_has_both_ends() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [need for needs in project["optional-dependencies"].values() for need in needs]
    for need in [*project["dependencies"], *extras]:
        assert need.startswith("cueva[") or (">=" in need and "<" in need.replace(">=", "")), need


def test_the_folder_tree_of_the_readme_is_the_folder_tree() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.split("## What is where", 1)[1].split("\n## ", 1)[0]
    top, inside = re.findall(r"^    (\w+)/", tree, re.M), re.findall(r"^      (\w+(?:/|\.py))", tree, re.M)
    assert all((ROOT / name).is_dir() for name in top)
    assert all((ROOT / "cueva" / name).exists() for name in inside)
    folders = {path.name + "/" for path in (ROOT / "cueva").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(inside), f"the README does not name {folders - set(inside)}"


def test_the_training_page_lists_every_key_with_its_default() -> None:
    """Keys are written as `section.key`, or as `key` under the heading of their section."""
    from pydantic_core import PydanticUndefined

    from cueva.train.settings import AnySchedule, TrainConfig

    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    rows: dict[str, str] = {}
    for heading, body in re.findall(r"^### (.*?)\n(.*?)(?=^#)", text, re.M | re.S):
        for key, default in re.findall(r"^\| `([\w.]+)` \| (.*?) \|", body, re.M):
            rows[key if "." in key else f"{heading.strip('[]')}.{key}"] = default
    known: dict[str, object] = {}
    for name, section in TrainConfig.model_fields.items():
        kinds = [section.annotation] if name != "schedule" else AnySchedule.__args__[0].__args__  # type: ignore[attr-defined]
        for kind in kinds:
            for key, field in kind.model_fields.items():  # type: ignore[union-attr]
                default = field.default if field.default is not PydanticUndefined else field.default_factory()
                known.setdefault(f"{name}.{key}", default)
    assert set(rows) == set(known)
    for key, default in known.items():
        shown = rows[key]
        if key.startswith("schedule.") or key in ("data.vocab_size",):
            continue  # they depend on something else, and the page says on what
        if default is None:
            assert shown == "none", key
        elif isinstance(default, float) and round(default, 3) != default and default > 1e-3:
            assert float(shown) == pytest.approx(default, rel=0.03), key
        else:
            value = tomllib.loads(f"x = {shown.strip('`')}")["x"]
            assert value == default, key
