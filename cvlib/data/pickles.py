"""Reading the data out of a pickle without running it: opcodes are walked, nothing is imported or called."""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Call", "read_pickle"]

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_IGNORED = {"PROTO", "FRAME", "STOP"}
_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"}
_NUMBERS = {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "FLOAT", "BINFLOAT"}
_VALUES = _STRINGS | _NUMBERS | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_DTYPES = {"u1": np.uint8, "i8": np.int64, "i4": np.int32}


@dataclass(eq=False)
class Call:
    """What a pickle asks to be called, as plain data: ``name`` "module attribute", arguments, state."""

    name: str
    arguments: Any = None
    state: Any = None

    def value(self) -> Any:
        """Return the array that this call stands for.

        Raises: ValueError for anything but the way in which numpy arrays are pickled.
        """
        module, _, attribute = self.name.rpartition(" ")
        if attribute == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            _, shape, dtype, fortran, raw = self.state
            kind = dtype.arguments[0]
            if dtype.name != "numpy dtype" or kind not in _DTYPES:
                raise ValueError(f"an array of {kind!r}")
            data = raw.encode("latin-1") if isinstance(raw, str) else raw  # Python 2 wrote bytes as text
            return np.frombuffer(data, dtype=_DTYPES[kind]).reshape(shape, order="F" if fortran else "C")
        raise ValueError(f"a call of {self.name!r}")


class _Machine:
    """The stack machine of pickle, for the opcodes of plain data only."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] | dict[int, Any] = {}

    def since_mark(self) -> list[Any]:
        at = self.marks.pop()
        items, self.stack[at:] = self.stack[at:], []
        return items

    def step(self, name: str, argument: Any) -> None:
        stack, memo = self.stack, self.memo
        if name in _IGNORED:
            return
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[name])
        else:
            self.combine(name, argument)

    def combine(self, name: str, argument: Any) -> None:
        """The opcodes that take values off the stack."""
        stack = self.stack
        if name in ("TUPLE", "LIST", "DICT"):
            items = self.since_mark()
            pairs = dict(zip(items[::2], items[1::2], strict=True)) if name == "DICT" else {}
            stack.append({"TUPLE": tuple(items), "LIST": items, "DICT": pairs}[name])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(name[-1])
            stack[-n:] = [tuple(stack[-n:])]
        elif name in ("APPEND", "APPENDS"):
            items = self.since_mark() if name == "APPENDS" else [stack.pop()]
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(Call(argument if name == "GLOBAL" else " ".join([stack.pop(-2), stack.pop()])))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if function.name == "_codecs encode" and arguments[1] == "latin1":
                stack.append(arguments[0].encode("latin-1"))  # how Python 3 writes bytes for Python 2
            else:
                stack.append(Call(function.name, arguments))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        else:
            raise ValueError(f"the opcode {name}")


def read_pickle(data: bytes) -> Any:
    """Return what a pickle holds, with every object it would construct left as a :class:`Call`.

    Strings of Python 2 come back as latin-1 text. Raises: ValueError for an opcode beyond plain data, for
    a truncated or a malformed pickle.

    >>> import pickle
    >>> read_pickle(pickle.dumps({"a": [1, (2, None)]}, protocol=2))
    {'a': [1, (2, None)]}
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            machine.step(opcode.name, argument)
        (result,) = machine.stack
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"a malformed pickle ({error})") from error
    return result
