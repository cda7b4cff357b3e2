"""What the pickle of a torch archive says, without running it.

A pickle is a program that may call anything. Here its opcodes are walked by a machine that knows only the few that
plain values and tensors need, and that calls nothing: each allowed name stands for a tensor, a dtype or a bag of
attributes. No step copies what it refers to, so that a pickle costs no more than in proportion to its length.
"""

import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from agriclip_jax.errors import UserError

MOST_OPCODES = 1_000_000  # a tensor takes about 30
MOST_VALUES = 200_000  # after all nesting is made flat: shared parts count as often as they are seen
DEEPEST = 64
LONGEST_NAME = 500

_PUSHED = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_SINGLE = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}

_STORAGES = {
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Double": "float64",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
_WITHOUT_STORAGE = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")
_DTYPES = {
    f"torch.{name}": np.dtype(getattr(ml_dtypes, name, name)) for name in (*_STORAGES.values(), *_WITHOUT_STORAGE)
}
_STORAGE_DTYPES = {f"torch.{kind}Storage": _DTYPES[f"torch.{name}"] for kind, name in _STORAGES.items()} | {
    "torch.storage.UntypedStorage": None,
    "torch.storage.TypedStorage": None,
}
_TENSORS = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
_FIRST_ARGUMENT = {  # is what these make, for us
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch.jit._pickle.restore_type_tag",
    *(f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")),
}
_ALLOWED = {
    "collections.OrderedDict",
    "torch.device",
    *_TENSORS,
    *_FIRST_ARGUMENT,
    *_DTYPES,
    *_STORAGE_DTYPES,
}


@dataclass(frozen=True)
class View:
    """A tensor as a pickle describes it, not checked against what it lies in.

    Attributes:
      dtype: of its elements.
      storage: name of the archive's member that holds them.
      offset: in elements, of the first.
      shape: at most 64 sizes, none negative.
      strides: in elements, parallel to the shape, none negative.
    """

    dtype: np.dtype
    storage: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: np.dtype | None
    key: str


class _Object:
    """An instance of a TorchScript class: what the file says its attributes are."""

    attributes: Mapping[str, Any] = {}


def describe(data: bytes, path: Path | str) -> dict[str, View | str | int | float | bool]:
    """The tensors and plain values of a pickle by flat name, nesting joined by "."; other values are left out.

    Args:
      data: a whole pickle.
      path: of its file, for errors.

    Raises:
      UserError: it asks for code, or is nested, shared or long beyond the limits.
      ValueError, LookupError, TypeError: it is damaged.
    """
    found, seen = {}, 0

    def visit(name: str, value: Any, depth: int) -> None:
        nonlocal seen
        seen += 1
        if seen > MOST_VALUES or depth > DEEPEST or len(name) > LONGEST_NAME:
            raise UserError(f"{path} nests or shares its values without end; save its tensors as safetensors")
        match value:
            case _Object():
                inner = value.attributes.items()
            case dict():
                inner = value.items()
            case list() | tuple():
                inner = enumerate(value)
            case View() | str() | int() | float():
                if name in found:
                    raise ValueError(f"two of its values are called {name!r}")
                found[name] = value
                return
            case _:
                return
        for key, child in inner:
            visit(f"{name}.{key}" if depth else str(key), child, depth + 1)

    visit("", _walk(data, path), 0)
    return found


def _walk(data: bytes, path: Path | str) -> Any:
    stack, marked, memo = [], [], {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if count >= MOST_OPCODES:
            raise UserError(f"{path} has a pickle of more than {MOST_OPCODES} steps; save its tensors as safetensors")
        name = opcode.name
        if name in _PUSHED:
            stack.append(argument)
            continue
        match name:
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                marked.append(stack)
                stack = []
            case "TUPLE":
                items, stack = stack, marked.pop()
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(name[-1])
                if len(stack) < size:
                    raise IndexError("a tuple of more than there is")
                stack[-size:] = [tuple(stack[-size:])]
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(_SINGLE[name])
            case "APPEND":
                value = stack.pop()
                _list(stack[-1]).append(value)
            case "APPENDS":
                items, stack = stack, marked.pop()
                _list(stack[-1]).extend(items)
            case "SETITEM":
                key, value = stack.pop(-2), stack.pop()
                _set(stack[-1], [key, value])
            case "SETITEMS":
                items, stack = stack, marked.pop()
                _set(stack[-1], items)
            case "GLOBAL":
                stack.append(_allowed(*argument.split(" ", 1), path))
            case "STACK_GLOBAL":
                module, attribute = stack.pop(-2), stack.pop()
                stack.append(_allowed(module, attribute, path))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                called, arguments = stack.pop(-2), stack.pop()
                stack.append(_made(called, arguments))
            case "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case _:
                if name == "INST":
                    _allowed(*argument.split(" ", 1), path)
                raise UserError(_refusal(path, f"opcode {name}"))
    raise ValueError("its pickle has no end")


def _refusal(path: Path | str, asked: str) -> str:
    return (
        f"{path} asks for {asked}, which is no tensor; weights that need code to be read are refused: "
        "save them as safetensors"
    )


def _allowed(module: Any, attribute: Any, path: Path | str) -> _Global:
    if not (isinstance(module, str) and isinstance(attribute, str)):
        raise TypeError("a name that is no text")
    name = f"{module[:LONGEST_NAME]}.{attribute[:LONGEST_NAME]}"
    if name in _ALLOWED or name.startswith("__torch__."):
        return _Global(name)
    raise UserError(_refusal(path, name[:100] if name.isprintable() else ascii(name[:100])))


def _list(target: Any) -> list:
    if not isinstance(target, list):
        raise TypeError("it appends to what is no list")
    return target


def _set(target: Any, items: list) -> None:
    if not isinstance(target, dict):
        raise TypeError("it sets an item of what is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int):
            raise TypeError("a dictionary's key is neither text nor a whole number")
        target[str(key)] = value  # as text also because hashes of numbers can be made to collide


def _storage(asked: Any) -> _Storage:
    match asked:
        case ("storage", _Global(name), str(key), _, _) if name in _STORAGE_DTYPES:
            return _Storage(_STORAGE_DTYPES[name], key)
    raise ValueError("a storage is described as torch never does")


def _made(called: Any, arguments: Any) -> Any:
    name = _name(called)
    match arguments:
        case _ if name.startswith("__torch__."):
            return _Object()
        case _ if name == "torch.device":
            return None
        case () if name == "collections.OrderedDict":
            return {}
        case (value, *_) if name in _FIRST_ARGUMENT:
            return value
        case (_Storage(dtype, key), offset, tuple(shape), tuple(strides), *_) if name in _TENSORS:
            third = name.endswith("_v3")
            if third:
                dtype = _DTYPES.get(_name(arguments[6]))
            plain = all(type(n) is int and n >= 0 for n in (offset, *shape[:64], *strides[:64]))
            if not (dtype and plain and len(shape) == len(strides) <= 64):
                raise ValueError("a tensor's shape, strides or dtype are none of torch's")
            if len(arguments) > 8 or any(arguments[7 if third else 6 :]):
                raise ValueError("a tensor's elements are stored negated or conjugated")
            return View(dtype, key, offset, shape, strides)
    raise ValueError(f"{name[:100] or 'what is no function'} is called as torch never does")


def _name(value: Any) -> str:
    return value.name if isinstance(value, _Global) else ""


def _build(target: Any, state: Any) -> None:
    if isinstance(target, _Object) and isinstance(state, dict):
        target.attributes = state
    elif not isinstance(target, dict):  # of an OrderedDict the state is its `_metadata`
        raise TypeError("it sets attributes of what has none")
