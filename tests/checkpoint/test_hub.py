import errno
import fnmatch
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

from cueva.checkpoint import resolve
from cueva.checkpoint.hub import UNWANTED, WANTED
from cueva.errors import CheckpointError


class Hub:
    """Stands in for the hub: remembers what was asked, and answers with a folder or an error."""

    def __init__(self, answer: Path | Exception):
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, name: str, **arguments: Any) -> str:
        self.asked.append((name, arguments))
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    hub = Hub(folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    return hub


def http_error(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "https://huggingface.co/api: no\nmore lines")
    return error


def test_a_local_path_wins_over_a_hub_id(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert resolve("org/name") == Path("org/name")
    assert resolve(tmp_path / "org" / "name") == tmp_path / "org" / "name"
    assert hub.asked == []
    with pytest.raises(CheckpointError, match="local path, which has no revision 'main'"):
        resolve("org/name", revision="main")


def test_an_id_is_downloaded_once_asked_for(hub: Hub) -> None:
    assert resolve("org/name-1.5_b", revision="abc") == hub.answer
    name, arguments = hub.asked[0]
    assert name == "org/name-1.5_b"
    assert arguments["revision"] == "abc"
    assert arguments["local_files_only"] is False


def test_offline_uses_only_what_is_here(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve("org/name", offline=True)
    assert hub.asked[0][1]["local_files_only"] is True
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    resolve("org/name")
    assert hub.asked[1][1]["local_files_only"] is True


def test_only_files_that_are_read_are_fetched(hub: Hub) -> None:
    resolve("org/name")
    arguments = hub.asked[0][1]
    assert arguments["allow_patterns"] == list(WANTED)
    assert arguments["ignore_patterns"] == list(UNWANTED)
    wanted = ["config.json", "generation_config.json", "model-00001-of-000163.safetensors", "tokenizer.json"]
    wanted += ["model.safetensors.index.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model"]
    unwanted = ["pytorch_model.bin", "modeling_deepseek.py", "tokenization_x.py", "model.pt", "README.md", "fig/x.json"]
    unwanted += ["inference/model.safetensors", ".gitattributes", "consolidated.00.pth"]
    kept = filter_repo_objects(
        [*wanted, *unwanted],
        allow_patterns=arguments["allow_patterns"],
        ignore_patterns=arguments["ignore_patterns"],
    )
    assert list(kept) == wanted
    assert not any(fnmatch.fnmatch(name, pattern) for name in wanted for pattern in UNWANTED)


@pytest.mark.parametrize("name", ["nowhere", "./org/name", "/a/b", "a/b/c", "../x/y", "org/x.gguf", "~/model", "org/"])
def test_what_is_neither_a_path_nor_an_id_is_refused_without_asking(hub: Hub, name: str) -> None:
    with pytest.raises(CheckpointError, match="there is no model directory") as caught:
        resolve(name)
    assert caught.value.way_out is not None
    assert hub.asked == []


@pytest.mark.parametrize(
    ("error", "words", "way_out"),
    [
        (http_error(errors.RepositoryNotFoundError), "no such model on the hub", "spelling"),
        (http_error(errors.GatedRepoError), "only to users who accepted its terms", "hf auth login"),
        (http_error(errors.RevisionNotFoundError), "has no revision 'abc'", None),
        (http_error(errors.HfHubHTTPError), "cannot fetch org/name from the hub: https.*: no$", "network is back"),
        (errors.LocalEntryNotFoundError("cannot reach"), "cannot fetch org/name from the hub: cannot reach", "network"),
        (ConnectionError("refused"), "cannot fetch org/name from the hub: refused", "network"),
        (TimeoutError(), "cannot fetch org/name from the hub: TimeoutError", "network"),
        (OSError(errno.ENOSPC, "full"), "no room to download org/name", "HF_HOME"),
        (errors.HFValidationError("bad id"), "valid hub id: bad id", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_failures_of_the_hub_are_sentences(hub: Hub, error: Exception, words: str, way_out: str | None) -> None:
    hub.answer = error
    with pytest.raises(CheckpointError) as caught:
        resolve("org/name", revision="abc")
    assert re.search(words, caught.value.message)
    assert way_out is None or way_out in str(caught.value.way_out)


def test_errors_of_the_hubs_http_library_are_sentences(hub: Hub) -> None:
    kind = errors.HfHubHTTPError.__mro__[1]
    assert kind.__module__.startswith("httpx")
    hub.answer = http_error(kind)
    with pytest.raises(CheckpointError, match="cannot fetch"):
        resolve("org/name")


def test_offline_and_not_here_says_both(hub: Hub) -> None:
    hub.answer = errors.LocalEntryNotFoundError("outgoing traffic has been disabled")
    with pytest.raises(CheckpointError, match=r"was not downloaded before .* downloads are switched off"):
        resolve("org/name", offline=True)


def test_our_own_mistakes_are_not_blamed_on_the_network(hub: Hub) -> None:
    hub.answer = KeyError("bug")
    with pytest.raises(KeyError):
        resolve("org/name")


def test_a_repository_without_a_model_is_refused(hub: Hub) -> None:
    assert isinstance(hub.answer, Path)
    (hub.answer / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        resolve("org/name")


def test_the_real_library_offline_gives_the_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the stand-in: an empty cache and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="was not downloaded before"):
        resolve("org/name", offline=True)
