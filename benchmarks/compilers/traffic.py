"""What the kernels of a compiled program read and write.

The compiler of the GPU gives no costs. But it writes down the program that it
has made: each instruction of its entry is a kernel, or a call of a library's,
that reads its operands from memory and writes its results there.
"""

from __future__ import annotations

import math
import re

# Bits of an element, where the name does not tell.
_BITS = {"pred": 8, "token": 0, "opaque": 0}
# What moves nothing.
_FREE = {
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "parameter",
    "tuple",
}
_ARRAY = re.compile(r"\b([a-z]+\d*)(?:[a-z]\w*)?\[([\d,]*)\]")
_LINE = re.compile(r"\s*(?:ROOT )?(%?[\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)")
_NAME = re.compile(r"%[\w.-]+")


def size(shape: str) -> int:
    """Bytes of an array or a tuple, as HLO writes them.

    >>> size("(f32[2,3]{1,0}, pred[8], /*index=2*/s8[])")
    33
    """
    total = 0
    for name, dimensions in _ARRAY.findall(shape):
        bits = _BITS.get(name)
        if bits is None:
            bits = int(re.sub(r"\D", "", name))
        count = math.prod(int(d) for d in dimensions.split(",") if d)
        total += count * bits // 8
    return total


def traffic(program: str) -> int:
    """Bytes that the instructions of the entry read and write.

    >>> traffic('''ENTRY %main (a: f32[4]) -> f32[4] {
    ...   %a = f32[4]{0} parameter(0)
    ...   %b = f32[4]{0} bitcast(%a), metadata={op_name="x"}
    ...   ROOT %c = f32[4]{0} fusion(%a, %b), kind=kLoop, calls=%fused
    ... }''')
    48
    """
    entry = (
        program[program.index("\nENTRY") + 1 :]
        if ("\nENTRY" in program)
        else program
    )
    sizes: dict[str, int] = {}
    total = 0
    for line in entry.splitlines()[1:]:
        if line.startswith("}"):
            break
        found = _LINE.match(line)
        if found is None:
            continue
        name, shape, operation, rest = found.groups()
        sizes[name] = size(shape)
        if operation in _FREE:
            continue
        operands = rest[: rest.index(")")]
        total += sizes[name]
        total += sum(sizes.get(one, 0) for one in _NAME.findall(operands))
    return total
