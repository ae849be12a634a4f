"""Reading and writing safetensors: what is refused, how, and that nothing else is."""

import json
import struct
import warnings

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from optdiff.nn.tensorfile import CheckpointError, open_file, open_folder, read_json, write_folder

STEM = "diffusion_pytorch_model"
F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def write_raw(path, header, data, length=None):
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(body) if length is None else length) + body + data)
    return path


def tensor(shape=(1,), start=0, stop=4, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        pytest.param({"a": F32, "b": tensor(start=8, stop=12)}, b"x" * 12, id="hole"),
        pytest.param({"a": F32, "b": tensor()}, b"x" * 4, id="overlap"),
        pytest.param({"a": F32, "b": tensor((2,), 2, 10)}, b"x" * 10, id="partial overlap"),
        pytest.param({"a": F32}, b"xxx", id="truncated"),
        pytest.param({"a": F32}, b"x" * 5, id="trailing bytes"),
        pytest.param({"a": tensor(start=4, stop=0)}, b"xxxx", id="offsets backwards"),
        pytest.param({"a": tensor((2,))}, b"xxxx", id="shape against bytes"),
        pytest.param({"a": tensor((2**62, 8))}, b"xxxx", id="size overflows"),
        pytest.param({"a": tensor((-1,))}, b"xxxx", id="negative size"),
        pytest.param({"a": tensor((1.0,))}, b"xxxx", id="fractional size"),
        pytest.param({"a": tensor(dtype="F33")}, b"xxxx", id="unknown type"),
        pytest.param({"a": {"dtype": "F32", "shape": [1]}}, b"xxxx", id="no offsets"),
        pytest.param({"__metadata__": {"x": 1}, "a": F32}, b"xxxx", id="metadata not text"),
        pytest.param([], b"", id="a list"),
        pytest.param(b"\xff\xfe{}", b"", id="not UTF-8"),
        pytest.param(b'{"a":' * 5000, b"", id="deeply nested"),
        pytest.param(b"", b"", id="empty header"),
    ],
)
def test_a_malformed_header_is_refused_naming_the_file(tmp_path, header, data):
    path = write_raw(tmp_path / "weights.safetensors", header, data)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: not a whole safetensors"):
        open_file(path)


@pytest.mark.parametrize("length", [100_000_001, 2**24 + 1, 2**63, 1_000_000, 3])
def test_a_header_of_the_wrong_length_is_refused(tmp_path, length):
    path = write_raw(tmp_path / "weights.safetensors", {"a": F32}, b"xxxx", length)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        open_file(path)


def test_a_header_over_the_limit_is_refused_even_if_it_is_all_there(tmp_path):
    path = write_raw(tmp_path / "weights.safetensors", b"", b"", 100_000_001)
    with path.open("r+b") as file:
        file.truncate(100_000_100)  # sparse: nothing is written
    with pytest.raises(CheckpointError, match="header too large"):
        open_file(path)


def test_every_truncation_is_refused(tmp_path):
    write_folder(tmp_path, STEM, {"a": np.arange(6.0), "b": np.ones((2, 2), np.float32)}, 2**30)
    path = tmp_path / f"{STEM}.safetensors"
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=STEM):
            open_file(path)


def test_a_file_that_shrinks_after_it_was_opened_is_an_error_naming_the_tensor(tmp_path):
    path = write_raw(tmp_path / "weights.safetensors", {"a.weight": F32}, b"xxxx")
    found = open_file(path)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: cannot read 'a\.weight'"):
        found["a.weight"].read()


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth", ".pkl"])
def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="save_pretrained"):
        open_file(path)
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not read.*save_pretrained"):
        open_folder(tmp_path, "model")


def test_a_pickle_by_another_name_is_refused(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        open_file(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("max_bytes", [2**30, 40], ids=["one file", "shards"])
def test_what_torch_writes_is_read_and_what_is_written_torch_reads(tmp_path, max_bytes):
    from safetensors.torch import load_file

    generator = torch.Generator().manual_seed(0)
    kinds = {
        "matrix": ((3, 4), torch.float32),
        "half": ((2, 3), torch.float16),
        "brain": ((5,), torch.bfloat16),
        "scalar": ((), torch.float32),
        "empty": ((0, 3), torch.float32),
        "double": ((2, 1, 2), torch.float64),
    }
    theirs = {
        name: torch.randn(shape, generator=generator).to(dtype)
        for name, (shape, dtype) in kinds.items()
    }
    save_file(theirs, tmp_path / f"{STEM}.safetensors")
    read = {name: found.read() for name, found in open_folder(tmp_path, STEM).items()}
    assert {name: array.shape for name, array in read.items()} == {
        name: tuple(array.shape) for name, array in theirs.items()
    }
    assert read["brain"].dtype == ml_dtypes.bfloat16
    (out := tmp_path / "out").mkdir()
    strided = {name: array.T.copy().T for name, array in read.items()}  # any strides will do
    write_folder(out, STEM, strided, max_bytes)
    files = [load_file(path) for path in out.glob("*.safetensors")]
    back = {name: array for file in files for name, array in file.items()}
    assert back.keys() == theirs.keys()
    for name, array in theirs.items():
        assert array.dtype == back[name].dtype and torch.equal(array, back[name])
    again = open_folder(out, STEM)
    assert {name: found.shape for name, found in again.items()} == {
        name: array.shape for name, array in read.items()
    }
    assert all(sum(a.nbytes for a in f.values()) <= max(max_bytes, 48) for f in files)
    assert (len(files) > 1) == (max_bytes == 40)


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0), (700, 900), (2, 600_000), (4, 3, 5, 7)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_tensors_of_any_size_are_read_into_any_type_and_strides(tmp_path, shape, dtype):
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    write_folder(
        tmp_path, STEM, {"before": np.ones(3, np.float16), "values": np.array(values)}, 2**30
    )
    out = np.empty(shape[::-1], dtype).T
    open_folder(tmp_path, STEM)["values"].read_into(out)
    np.testing.assert_array_equal(out, values.astype(dtype))


# Shards.


@pytest.fixture
def sharded(tmp_path):
    arrays = {name: np.full(4, i, np.float32) for i, name in enumerate("abcd")}
    write_folder(tmp_path, STEM, arrays, 32)
    return tmp_path


def edit_index(folder, change):
    path = folder / f"{STEM}.safetensors.index.json"
    index = read_json(path)
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_shards_are_read_through_the_index(sharded):
    found = open_folder(sharded, STEM)
    assert [found[name].read()[0] for name in "abcd"] == [0, 1, 2, 3]
    assert len({tensor.path for tensor in found.values()}) == 2


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/tmp/secret.safetensors",
        "deeper/secret.safetensors",
        "..\\secret.safetensors",
        "C:\\secret.safetensors",
        "..",
        "",
        ".safetensors",
        "weights.bin",
        "nul\0.safetensors",
        "line\n.safetensors",
        7,
        None,
    ],
)
def test_a_shard_that_is_not_a_plain_name_is_refused(sharded, name):
    edit_index(sharded, lambda weight_map: weight_map.update(a=name))
    with pytest.raises(CheckpointError, match=r"index\.json: 'a' is said to be in"):
        open_folder(sharded, STEM)


def test_index_and_shards_must_agree_and_all_disagreements_are_told(sharded):
    def change(weight_map):
        weight_map["e"] = weight_map["a"]
        weight_map["a"] = weight_map["d"]
        del weight_map["b"]

    edit_index(sharded, change)
    with pytest.raises(CheckpointError) as error:
        open_folder(sharded, STEM)
    for part in ["lacks 'e'", "lacks 'a'", "holds 'a', unlisted", "holds 'b', unlisted"]:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("variant", "stale", "told"),
    [
        (None, f"{STEM}-00003-of-00003.safetensors", True),
        (None, f"{STEM}.fp16-00001-of-00002.safetensors", False),
        (None, f"{STEM}-00001-of-00002.fp16.safetensors", False),
        (None, "something_else-00001-of-00002.safetensors", False),
        ("fp16", f"{STEM}.fp16-00009-of-00009.safetensors", True),
        ("fp16", f"{STEM}-00009-of-00009.fp16.safetensors", True),
        ("fp16", f"{STEM}-00003-of-00003.safetensors", False),
    ],
)
def test_shards_that_the_index_does_not_list_are_left_out_and_told(sharded, variant, stale, told):
    if variant:
        plain = sharded / f"{STEM}.safetensors.index.json"
        plain.rename(sharded / f"{STEM}.safetensors.index.{variant}.json")
    (sharded / stale).write_bytes(b"")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert open_folder(sharded, STEM, variant).keys() == set("abcd")
    assert [f"does not list {stale}, left out" in str(w.message) for w in caught] == [True] * told


def test_a_missing_shard_is_refused(sharded):
    (sharded / f"{STEM}-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors: no such file"):
        open_folder(sharded, STEM)


def test_a_single_file_beside_an_index_is_refused(sharded):
    save_file({"a": torch.ones(1)}, sharded / f"{STEM}.safetensors")
    with pytest.raises(CheckpointError, match="both claim the weights"):
        open_folder(sharded, STEM)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\xff", '{"weight_map": []}', "{}", "[" * 99999])
def test_a_malformed_index_is_refused(sharded, text):
    (sharded / f"{STEM}.safetensors.index.json").write_bytes(text.encode("latin1"))
    with pytest.raises(CheckpointError, match=r"index\.json: (not JSON|holds a|no weight_map)"):
        open_folder(sharded, STEM)


# Variants.


def test_a_variant_is_read_only_when_it_is_asked_for(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    save_file({"a": torch.ones(1).half()}, tmp_path / "model.fp16.safetensors")
    assert open_folder(tmp_path, "model")["a"].dtype == "F32"
    assert open_folder(tmp_path, "model", "fp16")["a"].dtype == "F16"
    with pytest.raises(CheckpointError, match=r"model\.bf16\.safetensors: no such file.*fp16"):
        open_folder(tmp_path, "model", "bf16")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pass variant='fp16'"):
        open_folder(tmp_path, "model")
    with pytest.raises(CheckpointError, match="there is no folder"):
        open_folder(tmp_path / "nowhere", "model")


# Fuzzing: whatever the bytes, a CheckpointError or tensors that are what the header says.

scraps = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F64", "F32", "F16", "BF16", "I64", "BOOL", "F4", "Q9"]) | scraps,
        "shape": st.lists(st.integers(0, 4) | st.integers(), max_size=3) | scraps,
        "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | scraps,
    },
)
headers = st.dictionaries(
    st.text(max_size=3) | st.just("__metadata__"), entries | scraps, max_size=3
)
NUMPY = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}


def check_opens_or_is_refused(path):
    try:
        found = open_file(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return False
    for name, entry in found.items():
        if entry.dtype in NUMPY:
            array = entry.read()
            assert entry.name == name
            assert (array.dtype, array.shape) == (NUMPY[entry.dtype], entry.shape)
    return True


@settings(max_examples=400, deadline=None, database=None, derandomize=True)
@given(header=headers, data=st.binary(max_size=40), excess=st.integers(-3, 3) | st.just(0))
def test_fuzzed_headers_are_read_or_refused(tmp_path_factory, header, data, excess):
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    body = json.dumps(header).encode()
    write_raw(path, body, data, max(0, len(body) + excess))
    check_opens_or_is_refused(path)


def test_mutated_files_are_read_or_refused(tmp_path):
    arrays = {
        "block.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "block.0.bias": np.ones(3, np.float16),
        "block.1.weight": np.ones((2, 2), ml_dtypes.bfloat16),
        "scale": np.float64(2.0),
    }
    write_folder(tmp_path, STEM, {n: np.asarray(a) for n, a in arrays.items()}, 2**30)
    path = tmp_path / f"{STEM}.safetensors"
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(1800):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, header))
            match rng.integers(0, 4):
                case 0:
                    data[at] = rng.integers(0, 256)
                case 1:
                    del data[at : at + int(rng.integers(1, 9))]
                case 2:
                    data[at:at] = rng.bytes(int(rng.integers(1, 9)))
                case 3:  # keep it JSON more often: exchange one digit
                    digits = [i for i in range(8, header) if 48 <= whole[i] < 58]
                    data[digits[rng.integers(0, len(digits))]] = 48 + int(rng.integers(0, 10))
        path.write_bytes(data)
        read += check_opens_or_is_refused(path)
    assert 0 < read < 1800
