"""Nested state as two plain files, back bit for bit, without pickle.

In: dicts with str or int keys, lists, tuples, tensors, numpy arrays and scalars, int, float, str,
bool and None. Out: ``tensors.safetensors`` for the numbers in bulk and ``tree.json`` for the rest.

In tree.json, null, booleans, strings, finite floats, small integers and lists stand for
themselves. Everything else is an object of one kind:
    {"dict": {key: node}}                       keys as ``_encode_key`` writes them
    {"tuple": [node]}
    {"int": "0x..."}                            beyond 2^53, which other readers of JSON would round
    {"float": "7ff0000000000000"}               infinities and NaN, as the 8 bytes of the double
    {"tensor": name}                            of that name in tensors.safetensors
    {"ndarray": name, "dtype": d, "shape": s}   d as numpy writes it; bytes if safetensors lacks it
    {"scalar": name, "dtype": d, "shape": []}   a numpy scalar, likewise
"""

import json
import math
import struct
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from algd.errors import CheckpointError
from algd.training.durable_files import read_whole, write_durably

TENSOR_FILE = "tensors.safetensors"
TREE_FILE = "tree.json"
_ROOT = "root"  # so that no name is empty or the format's reserved "__metadata__"
_EXACT_IN_JSON = 2**53
_TENSOR_DTYPES = frozenset(
    [
        torch.bool,
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    ]
)
_NUMPY_NATIVE = frozenset(
    np.dtype(kind).str
    for kind in [
        np.bool_,
        *(np.uint8, np.uint16, np.uint32, np.uint64),
        *(np.int8, np.int16, np.int32, np.int64),
        *(np.float16, np.float32, np.float64, np.complex64),
    ]
)
_MALFORMED = (
    SafetensorError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    RecursionError,
    struct.error,
)


def encode_tree(tree: Any) -> dict[str, bytes]:
    """Return the contents of the two files by name.

    Tensors are copied to the CPU and lose ``requires_grad``; dict subclasses become dicts, tensors
    that shared memory become separate.

    Raises:
        TypeError: naming the path of a value or key of another type.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encode(tree, _ROOT, tensors), indent=1, allow_nan=False)
    return {TENSOR_FILE: safetensors.torch.save(tensors), TREE_FILE: text.encode("ascii")}


def decode_tree(files: dict[str, bytes], *, directory: Path) -> Any:
    """Return the tree that ``encode_tree`` was given; tensors are on the CPU.

    Raises:
        CheckpointError: the bytes, read from ``directory``, are not what ``encode_tree`` writes.
    """
    try:
        tensors = safetensors.torch.load(files[TENSOR_FILE])
        return _decode(json.loads(files[TREE_FILE].decode("ascii")), tensors)
    except _MALFORMED as error:
        raise CheckpointError(
            f"{directory} holds no saved tree: {type(error).__name__}: {error}"
        ) from error


def save_tree(directory: Path, tree: Any) -> None:
    """Write a tree into an existing directory, durably; errors as ``encode_tree``, and OSError."""
    for name, data in encode_tree(tree).items():
        write_durably(directory / name, data)


def load_tree(directory: Path) -> Any:
    """Return the tree that ``save_tree`` wrote.

    Raises:
        CheckpointError: a file is missing or is not what ``save_tree`` writes.
    """
    files = {name: read_whole(directory / name) for name in (TENSOR_FILE, TREE_FILE)}
    return decode_tree(files, directory=directory)


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return the JSON node of a value, and put its tensors into ``tensors`` under their paths."""
    # Exact types: an IntEnum or a namedtuple would come back as something else.
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if abs(value) <= _EXACT_IN_JSON else {"int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
    if kind is list:
        return [_encode(child, f"{path}/{index}", tensors) for index, child in enumerate(value)]
    if kind is tuple:
        return {"tuple": _encode(list(value), path, tensors)}
    if isinstance(value, dict):
        keys = {key: _encode_key(key, path) for key in value}
        return {
            "dict": {keys[k]: _encode(v, f"{path}/{keys[k]}", tensors) for k, v in value.items()}
        }
    if isinstance(value, Tensor):
        tensors[path] = _plain_tensor(value, path)
        return {"tensor": path}
    if kind is np.ndarray or isinstance(value, np.generic):
        array = np.array(value, order="C")
        tensors[path] = _array_tensor(array, path)
        marker = "ndarray" if kind is np.ndarray else "scalar"
        return {marker: path, "dtype": array.dtype.str, "shape": list(array.shape)}
    raise TypeError(f"{path}: cannot save a value of type {kind.__module__}.{kind.__qualname__}")


def _encode_key(key: Any, path: str) -> str:
    """Write a key so that 1 and "1" differ, and that paths built with "/" are unique."""
    if type(key) is int:
        return f"#{key}"
    if type(key) is str:
        return quote(key, safe=" ", errors="surrogatepass")
    raise TypeError(f"{path}: cannot save a dict key of type {type(key).__name__}: {key!r}")


def _decode_key(text: str) -> str | int:
    return int(text[1:]) if text.startswith("#") else unquote(text, errors="surrogatepass")


def _plain_tensor(value: Tensor, path: str) -> Tensor:
    """Return a dense copy of its own on the CPU."""
    if value.layout is not torch.strided or value.is_meta or value.dtype not in _TENSOR_DTYPES:
        raise TypeError(f"{path}: cannot save a tensor of {value.layout}, {value.dtype}")
    return value.detach().to("cpu", copy=True).contiguous()


def _array_tensor(array: np.ndarray, path: str) -> Tensor:
    """Return the array as a tensor of its type, or of its bytes if torch has no such type."""
    if array.dtype.hasobject or np.dtype(array.dtype.str) != array.dtype:
        raise TypeError(f"{path}: cannot save a numpy array of dtype {array.dtype}")
    if array.dtype.str in _NUMPY_NATIVE:
        return torch.from_numpy(array)
    data = bytearray(array.tobytes())
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _decode(node: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the value of a node; what is malformed raises KeyError, TypeError or ValueError."""
    if isinstance(node, list):
        return [_decode(child, tensors) for child in node]
    if not isinstance(node, dict):
        return node
    match node:
        case {"dict": children}:
            return {_decode_key(key): _decode(child, tensors) for key, child in children.items()}
        case {"tuple": children}:
            return tuple(_decode(children, tensors))
        case {"int": text}:
            return int(text, 16)
        case {"float": text}:
            return struct.unpack(">d", bytes.fromhex(text))[0]
        case {"tensor": name}:
            return tensors[name]
        case {"ndarray": name, "dtype": dtype, "shape": shape}:
            return _decode_array(tensors[name], dtype, shape)
        case {"scalar": name, "dtype": dtype, "shape": []}:
            return _decode_array(tensors[name], dtype, [])[()]
    raise ValueError(f"unknown kind of node: {sorted(node)}")


def _decode_array(tensor: Tensor, dtype: str, shape: list[int]) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.hasobject:  # its bytes would be taken for addresses
        raise ValueError(f"dtype {dtype!r} is not plain data")
    array = tensor.numpy()
    if dtype in _NUMPY_NATIVE:
        if array.dtype != kind:
            raise ValueError(f"dtype {dtype!r} was promised, {array.dtype} found")
        return array.reshape(shape)
    return np.frombuffer(bytearray(array.tobytes()), dtype=kind).reshape(shape)
