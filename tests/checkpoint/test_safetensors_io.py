import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cueva.checkpoint.safetensors_header import DTYPES
from cueva.checkpoint.safetensors_io import INDEX_NAME, SINGLE_NAME, open_folder
from cueva.checkpoint.safetensors_write import TensorToWrite, write_folder
from cueva.errors import CheckpointError

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b": torch.arange(5, dtype=torch.bfloat16),
    "c": torch.tensor(3.5),
    "d": torch.zeros(0, 4),
    "e": torch.arange(7).to(torch.float8_e4m3fn),
}


def to_write(tensors: dict[str, Tensor]) -> list[TensorToWrite]:
    return [TensorToWrite(n, t.dtype, tuple(t.shape), lambda t=t: t) for n, t in tensors.items()]


def write_raw(path: Path, header: Any, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.float(), b.float())


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two files with odd names, and the index that lists them."""
    safetensors.torch.save_file({"a": TENSORS["a"]}, tmp_path / "first.safetensors", {"format": "pt"})
    safetensors.torch.save_file({"b": TENSORS["b"]}, tmp_path / "zz-second.safetensors", {"format": "pt"})
    index = {"metadata": {"total_size": 58}, "weight_map": {"a": "first.safetensors", "b": "zz-second.safetensors"}}
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    return tmp_path


def change_map(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    change(index["weight_map"])
    (folder / INDEX_NAME).write_text(json.dumps(index))


# --- what is read -----------------------------------------------------------------------------------------------------


def test_every_tensor_of_a_file_of_the_library_is_read(tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS, tmp_path / SINGLE_NAME)
    with open_folder(tmp_path) as stored:
        assert stored.tensors.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert same(stored.view(name), tensor), name
            assert same(stored.read(name), tensor), name
            place = torch.full(tensor.shape, torch.nan, dtype=torch.float32)
            stored.read_into(name, place)
            assert torch.equal(place, tensor.float()), name


def test_the_library_reads_every_file_we_write(tmp_path: Path) -> None:
    write_folder(tmp_path, to_write(TENSORS), 10**9)
    loaded = safetensors.torch.load_file(tmp_path / SINGLE_NAME)
    assert loaded.keys() == TENSORS.keys()
    assert all(same(loaded[name], tensor) for name, tensor in TENSORS.items())
    with safetensors.safe_open(tmp_path / SINGLE_NAME, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    with open_folder(tmp_path) as stored:
        for tensor in stored.tensors.values():
            assert tensor.start % tensor.dtype.itemsize == 0, "aligned, so it can be mapped"


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=12), largest=st.integers(1, 200))
def test_shards_hold_each_tensor_once_and_no_more_than_they_may(
    sizes: list[int], largest: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    tensors = {f"t{n}": torch.full((size,), float(n)) for n, size in enumerate(sizes)}
    files = write_folder(folder, to_write(tensors), largest)
    assert (folder / INDEX_NAME).exists() == (len(files) > 1)
    with open_folder(folder) as stored:
        assert stored.notes == []
        assert sorted(stored.files) == sorted(files)
        assert all(torch.equal(stored.view(name), tensor) for name, tensor in tensors.items())
        for file in files:
            held = [tensor for tensor in stored.tensors.values() if tensor.file == file]
            assert len(held) == 1 or sum(tensor.nbytes for tensor in held) <= largest


def test_shards_are_named_as_others_name_them(tmp_path: Path) -> None:
    tensors = {"x": torch.zeros(4), "y": torch.zeros(4)}
    files = write_folder(tmp_path, to_write(tensors), 16)
    assert [f.name for f in files] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert index == {"metadata": {"total_size": 32}, "weight_map": {"x": files[0].name, "y": files[1].name}}


def test_shards_with_odd_names_are_found_through_the_index(sharded: Path) -> None:
    with open_folder(sharded) as stored:
        assert same(stored.view("a"), TENSORS["a"])
        assert same(stored.view("b"), TENSORS["b"])
        assert stored.notes == []


def test_a_mapped_tensor_is_no_copy_and_writing_into_it_leaves_the_file(sharded: Path) -> None:
    before = (sharded / "first.safetensors").read_bytes()
    with open_folder(sharded) as stored:
        view = stored.view("a")
        assert stored.view("a").data_ptr() == view.data_ptr()
    view[0, 0] = 99.0
    assert view[0, 0] == 99.0
    assert (sharded / "first.safetensors").read_bytes() == before


def test_a_mapped_tensor_outlives_its_file(sharded: Path) -> None:
    with open_folder(sharded) as stored:
        view = stored.view("a")
    (sharded / "first.safetensors").unlink()
    assert torch.equal(view, TENSORS["a"])


def test_a_tensor_at_an_odd_place_is_read_all_the_same(tmp_path: Path) -> None:
    data = b"\x38" + torch.tensor([1.0, 2.0]).numpy().tobytes()
    write_raw(tmp_path / SINGLE_NAME, {"x": entry(0, 1, [1], "F8_E4M3"), "y": entry(1, 9, [2])}, data)
    with open_folder(tmp_path) as stored:
        assert stored.view("y").tolist() == [1.0, 2.0]
        assert stored.read("y").tolist() == [1.0, 2.0]


def test_files_that_no_index_lists_are_pointed_out_and_not_read(sharded: Path) -> None:
    (sharded / "adapter.safetensors").write_bytes(b"not even a file of this kind")
    with open_folder(sharded) as stored:
        assert stored.tensors.keys() == {"a", "b"}
        assert "adapter.safetensors" in stored.notes[0]


def test_an_index_with_a_wrong_total_is_pointed_out(sharded: Path) -> None:
    index = json.loads((sharded / INDEX_NAME).read_text()) | {"metadata": {"total_size": 1}}
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    with open_folder(sharded) as stored:
        assert "total of 1 bytes, but its tensors have 58" in stored.notes[0]


# --- damaged files ----------------------------------------------------------------------------------------------------


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused_wherever_it_ends(share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    safetensors.torch.save_file(TENSORS, folder / SINGLE_NAME)
    whole = (folder / SINGLE_NAME).read_bytes()
    (folder / SINGLE_NAME).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=SINGLE_NAME):
        open_folder(folder)


def test_a_truncated_shard_is_named_with_expected_and_actual_bytes(sharded: Path) -> None:
    file = sharded / "zz-second.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=rf"zz-second.safetensors is truncated: .*{size:,} bytes.*{size - 3:,}"):
        open_folder(sharded)


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"x": entry(0, 4, [1])}, b"12345678", "has 77 bytes, but its header describes only 73"),
        ({"x": entry(4, 8, [1])}, b"12345678", "leaves a gap"),
        ({"x": entry(0, 4, [1]), "y": entry(2, 6, [1])}, b"123456", "overlaps"),
        ({"x": entry(0, 8, [1])}, b"12345678", "takes 4 bytes, but has 8"),
        ({"x": entry(8, 4, [1])}, b"12345678", "damaged"),
        ({"x": entry(-4, 0, [1])}, b"", "damaged"),
        ({"x": entry(0, 4, [-1])}, b"1234", "damaged"),
        ({"x": entry(0, 4, [1.0])}, b"1234", "damaged"),  # pyright: ignore[reportArgumentType]
        ({"x": entry(0, 4, [True])}, b"1234", "damaged"),
        ({"x": {"dtype": "F32"}}, b"", "damaged"),
        ({"x": [1, 2]}, b"", "damaged"),
        ({"x": entry(0, 4, [1], "F6_E3M2")}, b"1234", "dtype F6_E3M2, which cueva does not know"),
        ([1], b"", "no JSON object"),
        (b"{", b"", "damaged"),
        (b"[" * 100_000, b"", "damaged"),
        (b"\xff\xff", b"", "damaged"),
        (
            b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"1",
            "holds the tensor x twice",
        ),
    ],
)
def test_a_damaged_header_is_refused_by_file(tmp_path: Path, header: Any, data: bytes, words: str) -> None:
    write_raw(tmp_path / SINGLE_NAME, header, data)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_folder(tmp_path)
    assert str(tmp_path / SINGLE_NAME) in caught.value.message


@settings(max_examples=150)
@given(place=st.integers(0, 400), byte=st.integers(0, 255))
def test_whatever_byte_is_flipped_nothing_but_a_sentence_is_raised(
    place: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    safetensors.torch.save_file(TENSORS, folder / SINGLE_NAME)
    whole = bytearray((folder / SINGLE_NAME).read_bytes())
    whole[place % len(whole)] = byte
    (folder / SINGLE_NAME).write_bytes(whole)
    with contextlib.suppress(CheckpointError), open_folder(folder) as stored:
        for name in stored.tensors:
            assert stored.view(name).shape == stored.tensors[name].shape


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS, tmp_path / SINGLE_NAME)
    with open_folder(tmp_path) as stored:
        (tmp_path / SINGLE_NAME).write_bytes((tmp_path / SINGLE_NAME).read_bytes()[:-40])
        with pytest.raises(CheckpointError, match="became shorter"):
            _ = [stored.read(name) for name in TENSORS]


# --- index and files that disagree ------------------------------------------------------------------------------------


def test_a_missing_shard_is_named_with_what_it_holds(sharded: Path) -> None:
    (sharded / "first.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"first.safetensors is missing: .*holds a"):
        open_folder(sharded)


def test_a_listed_tensor_that_is_not_in_its_file_is_named(sharded: Path) -> None:
    change_map(sharded, lambda weights: weights.update(ghost="first.safetensors"))
    with pytest.raises(CheckpointError, match=r"says that ghost is in first.safetensors"):
        open_folder(sharded)


def test_a_tensor_listed_in_the_wrong_file_is_named(sharded: Path) -> None:
    safetensors.torch.save_file({"c": TENSORS["c"]}, sharded / "third.safetensors")
    change_map(sharded, lambda weights: weights.update(c="first.safetensors", a="third.safetensors"))
    with pytest.raises(CheckpointError, match=r"says that (a is in third|c is in first).safetensors"):
        open_folder(sharded)


def test_a_tensor_that_the_index_does_not_list_is_named(sharded: Path) -> None:
    safetensors.torch.save_file({"b": TENSORS["b"], "stray": TENSORS["c"]}, sharded / "zz-second.safetensors")
    with pytest.raises(CheckpointError, match=r"zz-second.safetensors holds stray, which"):
        open_folder(sharded)


def test_a_tensor_in_two_files_is_named(sharded: Path) -> None:
    safetensors.torch.save_file({"a": TENSORS["a"], "b": TENSORS["b"]}, sharded / "zz-second.safetensors")
    with pytest.raises(CheckpointError, match=r"the tensor a is in two files, .*first.* and .*zz-second"):
        open_folder(sharded)


@pytest.mark.parametrize(
    "place",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..",
        ".",
        "",
        "C:x.safetensors",
        "a\\b.safetensors",
    ],
)
def test_an_index_never_leads_out_of_its_folder(sharded: Path, place: str) -> None:
    safetensors.torch.save_file({"x": TENSORS["a"]}, sharded.parent / "x.safetensors")
    change_map(sharded, lambda weights: weights.update(x=place))
    with pytest.raises(CheckpointError, match="only a file beside the index is read"):
        open_folder(sharded)


@pytest.mark.parametrize("place", ["pytorch_model.bin", "first.pt", "config.json"])
def test_an_index_never_leads_to_another_kind_of_file(sharded: Path, place: str) -> None:
    change_map(sharded, lambda weights: weights.update(x=place))
    with pytest.raises(CheckpointError, match=r"only \*.safetensors files are read"):
        open_folder(sharded)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot read"),
        ("[]", "weight_map"),
        ('{"weight_map": ["a"]}', "weight_map"),
        ('{"weight_map": {"a": 1}}', "weight_map"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "lists a twice"),
    ],
)
def test_a_damaged_index_is_refused(sharded: Path, text: str, words: str) -> None:
    (sharded / INDEX_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_folder(sharded)
    assert INDEX_NAME in caught.value.message


def test_a_single_file_beside_an_index_that_does_not_list_it_is_refused(sharded: Path) -> None:
    safetensors.torch.save_file(TENSORS, sharded / SINGLE_NAME)
    with pytest.raises(CheckpointError, match="holds both"):
        open_folder(sharded)


# --- folders without such files ---------------------------------------------------------------------------------------


def test_a_folder_with_only_pickled_weights_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"only as pytorch_model.bin: such files are pickled"):
        open_folder(tmp_path)


def test_shards_without_an_index_are_refused_in_words(sharded: Path) -> None:
    (sharded / INDEX_NAME).unlink()
    with pytest.raises(CheckpointError, match=r"holds first.safetensors, zz-second.safetensors, but neither"):
        open_folder(sharded)


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_folder(tmp_path)
    with pytest.raises(CheckpointError, match="there is no folder"):
        open_folder(tmp_path / "x")


def test_every_dtype_of_the_table_is_read(tmp_path: Path) -> None:
    tensors = {name: torch.ones(3).to(dtype) for name, dtype in DTYPES.items()}
    safetensors.torch.save_file(tensors, tmp_path / SINGLE_NAME)
    with open_folder(tmp_path) as stored:
        assert {name: stored.view(name).dtype for name in DTYPES} == DTYPES
