"""Bad input from the command line: exit status 2, one sentence on stderr with its way out, and never a traceback."""

import shutil
from pathlib import Path

import pytest

from tests.checkpoint.disks import fill_up, make_read_only, small_disk
from tests.cli.conftest import Cueva, Ran
from tests.small_runs import WORDS


def refused(ran: Ran, *parts: str) -> None:
    """The one shape that every refusal has."""
    assert ran.status == 2, ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    own = [line for line in ran.err.splitlines() if line.startswith("cueva ") and ": note: " not in line]
    assert len(own) == 1, ran.err
    for part in parts:
        assert part in ran.err, ran.err


def train(cueva: Cueva, source: Path, folder: Path, *changes: str) -> Ran:
    flags = [
        f"--set={change}"
        for change in (f"run.folder={folder}", "data.vocab_size=280", "data.sequence_length=32", *changes)
    ]
    return cueva("train", "--preset", "tiny", "--data", source, "--steps", "2", "--quiet", *flags)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(WORDS * 30)
    return path


def test_an_empty_corpus(cueva: Cueva, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(train(cueva, tmp_path / "empty", tmp_path / "runs"), str(tmp_path / "empty"))
    refused(cueva("prepare", tmp_path / "empty", "--out", tmp_path / "shards"), str(tmp_path / "empty"))
    refused(cueva("prepare", tmp_path / "absent.txt", "--out", tmp_path / "shards"), "absent.txt")


def test_an_empty_file(cueva: Cueva, tmp_path: Path) -> None:
    (tmp_path / "nothing.txt").write_text("")
    refused(train(cueva, tmp_path / "nothing.txt", tmp_path / "runs"), "nothing.txt", "empty")


def test_text_that_is_no_utf_8_is_named_by_file_and_line(cueva: Cueva, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"one\ntwo\nma\xf1ana\n" + WORDS.encode() * 20)
    refused(train(cueva, tmp_path / "latin.txt", tmp_path / "runs"), "latin.txt", "line 3", "--skip-bad")


def test_a_corpus_shorter_than_one_row(cueva: Cueva, text: Path, tmp_path: Path) -> None:
    refused(
        train(cueva, text, tmp_path / "runs", "data.sequence_length=4000", "model.max_position_embeddings=4096"),
        "one row takes 4,001",
        "try a length",
    )


def test_a_vocabulary_larger_than_the_text_supports(cueva: Cueva, text: Path, tmp_path: Path) -> None:
    refused(
        train(cueva, text, tmp_path / "runs", "data.vocab_size=9000"),
        "supports a vocabulary of",
        "9000",
        "try a vocab_size",
    )


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("model.qk_rope_head_dim=7", ["`qk_rope_head_dim` is 7", "6 or 8"]),
        ("model.num_attention_heads=0", ["`num_attention_heads` is 0"]),
        ("model.n_group=3", ["8 experts cannot be split into 3 equal groups"]),
        ("model.num_experts_per_tok=9", ["`num_experts_per_tok` is 9"]),
        ("model.hidden_sise=64", ["model.hidden_sise", "hidden_size"]),
        ("data.sequence_length=9999", ["9999", "256 positions"]),
        ("optimiser.lr=1", ["optimiser", "optimizer"]),
        ("optimizer.lr=fast", ["optimizer.lr", "fast"]),
        ("run.steps=0", ["run.steps"]),
        ("lr=1", ["section.key=value"]),
    ],
)
def test_settings_that_describe_nothing(
    cueva: Cueva, text: Path, tmp_path: Path, change: str, parts: list[str]
) -> None:
    refused(train(cueva, text, tmp_path / "runs", change), *parts)
    assert not (tmp_path / "runs").exists()


def test_a_run_without_a_length(cueva: Cueva, text: Path) -> None:
    refused(cueva("train", "--data", text), "the run has no length", "run.steps")


def test_a_config_that_is_missing_or_no_toml(cueva: Cueva, tmp_path: Path) -> None:
    refused(cueva("train", "--config", tmp_path / "absent.toml"), "absent.toml")
    (tmp_path / "bad.toml").write_text("[run\nsteps = 1")
    refused(cueva("train", "--config", tmp_path / "bad.toml"), "bad.toml", "TOML")


def test_a_folder_that_holds_something_else(cueva: Cueva, text: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "default").mkdir(parents=True)
    (tmp_path / "runs" / "default" / "letter.txt").write_text("dear")
    refused(train(cueva, text, tmp_path / "runs"), "holds no training run")
    assert (tmp_path / "runs" / "default" / "letter.txt").read_text() == "dear"


def test_a_prompt_longer_than_the_models_positions(cueva: Cueva, model: Path) -> None:
    refused(
        cueva("generate", "--model", model, "--prompt", WORDS * 20),
        "this model has 128 positions",
        "try a shorter prompt",
    )


def test_a_path_without_a_model(cueva: Cueva, tmp_path: Path) -> None:
    for verb in ("inspect", "generate", "chat", "eval"):
        where = [tmp_path / "absent"] if verb == "inspect" else ["--model", tmp_path / "absent"]
        more = ["text.txt"] if verb == "eval" else []
        refused(cueva(verb, *where, *more), "there is no model directory", "absent")


def test_a_truncated_shard(cueva: Cueva, model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    for words in (["inspect", broken], ["generate", "--model", broken, "--prompt", "x"], ["chat", "--model", broken]):
        refused(cueva(*words), "model.safetensors")


def test_a_damaged_generation_config(cueva: Cueva, model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "generation_config.json").write_text("{")
    refused(cueva("generate", "--model", broken, "--prompt", "x"), "generation_config.json")


def test_a_model_without_a_tokenizer(cueva: Cueva, model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "tokenizer.json").unlink()
    refused(cueva("generate", "--model", bare, "--prompt", "x"), "no tokenizer")
    refused(cueva("eval", "--model", bare, "x.txt"), "tokenizer.json")


def test_a_text_that_is_not_there_to_score(cueva: Cueva, model: Path, tmp_path: Path) -> None:
    refused(cueva("eval", "--model", model, tmp_path / "absent.txt"), "absent.txt")
    refused(cueva("eval", "--model", model, tmp_path / "absent.txt", "--length", "4096"), "this model has 128")


def test_a_read_only_directory(cueva: Cueva, text: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        make_read_only(disk)
        refused(train(cueva, text, disk / "runs"), str(disk))
        refused(cueva("prepare", text, "--out", disk / "shards", "--vocab-size", "280"), str(disk))


def test_a_full_disk(cueva: Cueva, text: Path, tmp_path: Path) -> None:
    """Room for the text and not for the weights: the run ends with a sentence, and goes on once there is room."""
    with small_disk(tmp_path / "disk", "8m") as disk:
        fill_up(disk, 400_000)
        refused(train(cueva, text, disk / "runs"), str(disk))
        (disk / "filler").unlink()
        assert train(cueva, text, disk / "runs").status == 0


def test_one_folder_holds_one_quickstart(cueva: Cueva, tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "letter.txt").write_text("dear")
    refused(
        cueva("quickstart", "--folder", tmp_path / "q", "--steps", "1", "--preset", "tiny"), "holds no training run"
    )
    refused(cueva("quickstart", "--folder", tmp_path / "r", "--preset", "tinny"), "tinny")
