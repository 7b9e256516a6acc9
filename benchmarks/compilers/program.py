"""Programs as text: split before they are compiled, and read afterwards.

Compilers write down the program that they have made: each instruction of its
entry is a kernel, or a call of a library's, that reads its operands from memory
and writes its results there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

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
_VIEW = 'custom_call_target="ConcatBitcast"'
# What is copied beside the kernels, from one memory to the other.
_COPIES = {"copy-start", "slice-start"}
_ARRAY = re.compile(r"\b([a-z]+\d*)(?:[a-z]\w*)?\[([\d,]*)\](\{[^}]*\})?")
_LINE = re.compile(r"\s*(?:ROOT )?(%?[\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)")
_NAME = re.compile(r"%[\w.-]+")
_PARAMETER = re.compile(r"%arg(\d+): tensor<([^>]*)>(?: \{[^}]*\})?")
# One that is begun and ended is one.
_EXCHANGE = re.compile(
    r" (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)"
    r"(?:-start)?\("
)


def split(module: str, count: int) -> str:
    """A module whose first two parameters are a batch, on several devices.

    The batch is split among them, and everything else is on all. The compiler
    finds where they must then exchange something.
    """

    def sharded(found: re.Match[str]) -> str:
        number, shape = found.groups()
        ones = ",1" * (shape.count("x") - 1)
        where = f"devices=[{count}{ones}]<=[{count}]"
        where = where if int(number) < 2 else "replicated"
        attribute = f'mhlo.sharding = "{{{where}}}"'
        return f"%arg{number}: tensor<{shape}> {{{attribute}}}"

    begin = module.index("func.func @main(")
    end = module.index(") -> ", begin)
    parameters = _PARAMETER.sub(sharded, module[begin:end])
    return re.sub(
        r"mhlo\.num_partitions = \d+",
        f"mhlo.num_partitions = {count}",
        module[:begin] + parameters + module[end:],
    )


def exchanges(program: str) -> int:
    """How many instructions of a compiled program move data between devices."""
    return len(_EXCHANGE.findall(program))


class Instruction(NamedTuple):
    """One of a compiled program's entry: a kernel, or a copy beside kernels.

    Attributes:
        operation: Its name in HLO.
        arrays: For every operand and result its bytes, and whether it lies in
            the memory of the chip itself.
    """

    operation: str
    arrays: Sequence[tuple[int, bool]]


def arrays(shape: str) -> list[tuple[int, bool]]:
    """Bytes of an array or of a tuple's parts, and which lie on the chip.

    >>> arrays("(f32[2,3]{1,0:T(8,128)S(1)}, pred[8], /*index=2*/s8[]{:S(2)})")
    [(24, True), (8, False), (1, False)]
    """
    found = []
    for name, dimensions, layout in _ARRAY.findall(shape):
        bits = _BITS.get(name)
        if bits is None:
            bits = int(re.sub(r"\D", "", name))
        count = math.prod(int(d) for d in dimensions.split(",") if d)
        found.append((count * bits // 8, "S(1)" in layout))
    return found


def instructions(program: str) -> Iterator[Instruction]:
    """Those of the entry that move something.

    A copy that is begun and ended is one: what it reads and what it writes.
    """
    entry = (
        program[program.index("\nENTRY") + 1 :]
        if "\nENTRY" in program
        else program
    )
    known: dict[str, list[tuple[int, bool]]] = {}
    for line in entry.splitlines()[1:]:
        if line.startswith("}"):
            break
        found = _LINE.match(line)
        if found is None:
            continue
        name, shape, operation, rest = found.groups()
        known[name] = arrays(shape)
        if operation in _FREE or operation.endswith("-done") or _VIEW in rest:
            continue
        moved = list(known[name])
        if operation in _COPIES:
            # From, to, and a flag; of a slice no more is read than written.
            (_, place), to = moved[:2]
            moved = [(to[0], place), to]
        else:
            operands = rest[: rest.index(")")]
            for operand in _NAME.findall(operands):
                moved += known.get(operand, [])
        yield Instruction(operation, moved)


def traffic(program: str) -> int:
    """Bytes that kernels read and write, in whatever memory.

    >>> traffic('''ENTRY %main (a: f32[4]) -> f32[4] {
    ...   %a = f32[4]{0} parameter(0)
    ...   %b = f32[4]{0} bitcast(%a), metadata={op_name="x"}
    ...   ROOT %c = f32[4]{0} fusion(%a, %b), kind=kLoop, calls=%fused
    ... }''')
    48
    """
    return sum(
        size
        for operation, moved in instructions(program)
        for size, _ in moved
        if operation not in _COPIES
    )


def memory(program: str) -> int:
    """Bytes that kernels and copies move from and to the main memory.

    What lies on the chip is not counted. A TPU's compiler decides which
    arrays do, and copies them there and back beside the kernels.
    """
    return sum(
        size
        for _, moved in instructions(program)
        for size, on_chip in moved
        if not on_chip
    )
