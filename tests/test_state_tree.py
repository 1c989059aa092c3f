"""Trees come back bit for bit, and nothing but trees comes back."""

import json
import math
import pickle
import struct
from collections import namedtuple
from enum import IntEnum
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as numpy_strategies
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saved_runs import same_bits

from algd.errors import CheckpointError
from algd.training.state_tree import (
    TENSOR_FILE,
    TREE_FILE,
    decode_tree,
    encode_tree,
    load_tree,
    save_tree,
)

TENSOR_DTYPES = [
    torch.bool,
    torch.uint8,
    torch.uint16,
    torch.int64,
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.complex64,
]
arrays = numpy_strategies.arrays(
    dtype=st.one_of(
        numpy_strategies.scalar_dtypes(),
        numpy_strategies.unicode_string_dtypes(max_len=4),
        numpy_strategies.byte_string_dtypes(max_len=4),
    ),
    shape=numpy_strategies.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
tensors = st.builds(
    lambda dtype, shape, seed: (
        torch.randint(0, 256, (*shape, 16), generator=torch.Generator().manual_seed(seed))
        .to(torch.uint8)
        .view(dtype if dtype is not torch.bool else torch.uint8)
        .to(dtype)
    ),
    st.sampled_from(TENSOR_DTYPES),
    st.lists(st.integers(0, 3), max_size=2),
    st.integers(0, 2**32),
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    st.text(st.characters()),
    tensors,
    arrays,
    arrays.filter(lambda a: a.size > 0).map(lambda a: a.reshape(-1)[0]),
)
keys = st.one_of(st.text(st.characters(), max_size=5), st.integers(), st.sampled_from("/#%0~."))
trees = st.recursive(
    leaves,
    lambda children: st.one_of(
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        st.dictionaries(keys, children, max_size=4),
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees)
def test_every_tree_comes_back_bit_for_bit(tree: Any) -> None:
    assert same_bits(decode_tree(encode_tree(tree), directory=Path("run")), tree)


def test_files_come_back_from_the_disk(tmp_path: Path) -> None:
    tree = {"generator": torch.Generator().manual_seed(3).get_state(), 0: (1.5, [None])}
    save_tree(tmp_path, tree)
    assert {path.name for path in tmp_path.iterdir()} == {TENSOR_FILE, TREE_FILE}
    assert same_bits(load_tree(tmp_path), tree)


@pytest.mark.parametrize("name", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_numpy_generator_continues_its_stream(name: str) -> None:
    bits = getattr(np.random, name)(7)
    generator = np.random.Generator(bits)
    generator.integers(0, 2**16, size=3, dtype=np.uint16)
    restored = getattr(np.random, name)(0)
    restored.state = decode_tree(encode_tree(bits.state), directory=Path("run"))
    expected = generator.integers(0, 2**16, size=9, dtype=np.uint16)
    actual = np.random.Generator(restored).integers(0, 2**16, size=9, dtype=np.uint16)
    np.testing.assert_array_equal(actual, expected)


def test_what_json_cannot_hold_is_written_as_documented() -> None:
    nan = struct.unpack(">d", bytes.fromhex("fff8000000000001"))[0]
    tree = {3: math.inf, "3": 2**64, "a/b": nan, "t": (-0.0,), "z": 2**53}
    assert json.loads(encode_tree(tree)[TREE_FILE]) == {
        "dict": {
            "#3": {"float": "7ff0000000000000"},
            "3": {"int": "0x10000000000000000"},
            "a%2Fb": {"float": "fff8000000000001"},
            "t": {"tuple": [-0.0]},
            "z": 2**53,
        }
    }


def test_keys_that_look_alike_keep_their_own_tensors() -> None:
    tree = {
        "a/b": torch.tensor(1),
        "a": {
            "b": torch.tensor(2),
            0: torch.tensor(3),
            "0": torch.tensor(4),
            "#0": torch.tensor(5),
        },
        "a%2Fb": torch.tensor(6),
        "": torch.tensor(7),
    }
    assert same_bits(decode_tree(encode_tree(tree), directory=Path("run")), tree)


def test_tensors_that_share_memory_or_need_gradients_are_saved_by_value() -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    tree = [
        weight,
        weight.T,
        weight[0],
        weight[:, :1].expand(2, 4),
        weight.to(torch.complex64).conj(),
    ]
    restored = decode_tree(encode_tree(tree), directory=Path("run"))
    assert same_bits(restored, [tensor.detach().resolve_conj() for tensor in tree])
    assert type(restored[0]) is torch.Tensor
    restored[0].zero_()
    assert restored[2].tolist() == [0.0, 1.0, 2.0]


class Colour(IntEnum):
    RED = 1


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({1}, "set"),
        (b"x", "bytes"),
        (Path("x"), "PosixPath"),
        (Colour.RED, "Colour"),
        (Point(1, 2), "Point"),
        (np.array([None]), "dtype object"),
        (np.zeros(2, dtype=[("a", "f4")]), "numpy array of dtype"),
        (np.ma.zeros(2), "MaskedArray"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        ({True: 1}, "dict key of type bool"),
        ({(1, 2): 1}, "dict key of type tuple"),
    ],
)
def test_unsupported_value_is_a_type_error_that_names_its_path(value: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=rf"^root/agent/#2/1: .*{kind}"):
        encode_tree({"agent": {2: [0, value]}})


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", [TENSOR_FILE, TREE_FILE])
@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_pickle_in_place_of_a_file_is_refused_and_not_executed(
    tmp_path: Path, name: str, write: Any
) -> None:
    sprung = tmp_path / "sprung"
    save_tree(tmp_path, {"a": torch.zeros(2)})
    with (tmp_path / name).open("wb") as file:
        write(Trap(sprung), file)
    with pytest.raises(CheckpointError, match="no saved tree"):
        load_tree(tmp_path)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))  # noqa: S301 - the trap works
    assert sprung.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"unknown": 1}',
        '{"tensor": "missing"}',
        '{"tensor": [1]}',
        '{"dict": [1]}',
        '{"dict": {"#x": 1}}',
        '{"int": "zz"}',
        '{"float": "00"}',
        '{"ndarray": "root", "dtype": "|O", "shape": [1]}',
        '{"ndarray": "root", "dtype": "f8,O", "shape": [1]}',
        '{"ndarray": "root", "dtype": "<f4", "shape": [1]}',
        '{"ndarray": "root", "dtype": "<f8", "shape": [2]}',
        '{"ndarray": "root", "dtype": "<f8", "shape": "x"}',
        '{"scalar": "root", "dtype": "<f8", "shape": [1]}',
    ],
)
def test_malformed_tree_is_one_checkpoint_error(text: str) -> None:
    files = {TENSOR_FILE: encode_tree(np.zeros(1))[TENSOR_FILE], TREE_FILE: text.encode()}
    with pytest.raises(CheckpointError, match=r"^runs/a holds no saved tree: "):
        decode_tree(files, directory=Path("runs/a"))


def test_missing_file_is_named(tmp_path: Path) -> None:
    save_tree(tmp_path, {})
    (tmp_path / TENSOR_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"tensors\.safetensors cannot be read: No such file"):
        load_tree(tmp_path)
