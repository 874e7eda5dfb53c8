"""Follows one thread through the machine code of a CUDA kernel, as `nvdisasm -c` prints it, and counts instructions.

Integers are computed, so that loops run as often as they do on a device; floating point and what comes from memory is
not known, but for the words that the caller gives. A branch on something unknown skips ahead: such branches guard what
is seldom done (a new maximum, a slow path), and a wait that has not ended does not repeat. Calls are stepped over.
Every instruction that is issued counts, switched off by its predicate or not, since each takes an issue slot.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

MASK = 0xFFFFFFFF
_LINE = re.compile(r"\s+/\*([0-9a-f]{4,5})\*/\s+(.*?);")
_LABEL = re.compile(r"(\.L_x_\d+):")
_GUARD = re.compile(r"@(!?)(U?P\w+)\s+")


@dataclass(frozen=True)
class Instruction:
    op: str  # with its modifiers
    operands: tuple[str, ...]
    guard: str | None  # the predicate it runs under, with "!" where it is negated


@dataclass
class Kernel:
    name: str
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def parse(listing: str) -> list[Kernel]:
    kernels: list[Kernel] = []
    for line in listing.splitlines():
        if line.startswith(".text.") and line.rstrip().endswith(":"):
            kernels.append(Kernel(line.strip()[6:-1]))
        elif label := _LABEL.match(line):
            kernels[-1].labels[label[1]] = len(kernels[-1].code)
        elif (found := _LINE.match(line)) and kernels:
            text = found[2].strip()
            guard = _GUARD.match(text)
            if guard:
                text = text[guard.end() :]
            op, _, rest = text.partition(" ")
            operands = tuple(o.strip() for o in re.sub(r"\.reuse", "", rest).split(",")) if rest.strip() else ()
            kernels[-1].code.append(Instruction(op, operands, guard[1] + guard[2] if guard else None))
    return kernels


def _signed(x: int) -> int:
    return x - (1 << 32) if x & 0x80000000 else x


Value = int | None


class Thread:
    """One thread of a kernel. `special`: S2R's registers; `constants`: words of bank 0; `words`: of memory."""

    def __init__(self, special: Mapping[str, int], constants: Mapping[int, int], words: Mapping[int, int]) -> None:
        self.special, self.constants, self.words = special, constants, words
        self.registers: dict[str, Value] = {}

    # --- operands ---

    def constant(self, text: str, more: int = 0) -> Value:
        place = re.fullmatch(r"-?c\[0x0\]\[0x([0-9a-f]+)\]", text)
        return self.constants.get(int(place[1], 16) + more) if place else None

    def read(self, text: str) -> Value:
        """32 bits."""
        negative, inverted = text.startswith("-"), text.startswith("~")
        bare = text.lstrip("-~").strip("|")
        value: Value
        if bare in ("RZ", "URZ", "SRZ"):
            value = 0
        elif re.fullmatch(r"0x[0-9a-f]+", bare):
            value = int(bare, 16)
        elif re.fullmatch(r"\d+", bare):
            value = int(bare)
        elif bare.startswith("c["):
            value = self.constant(bare)
        else:
            value = self.registers.get(bare.split(".")[0])
        if value is None:
            return None
        return (-value if negative else ~value if inverted else value) & MASK

    def read_64(self, text: str) -> Value:
        bare = text.lstrip("-")
        if bare in ("RZ", "URZ"):
            return 0
        if bare.startswith("c["):
            low, high = self.constant(bare), self.constant(bare, 4)
        else:
            low, high = self.read(bare), self.read(_next(bare)) if re.fullmatch(r"U?R\d+", bare) else 0
        if low is None or high is None:
            return None
        value = low | high << 32
        return (-value if text.startswith("-") else value) & (1 << 64) - 1

    def write(self, text: str, value: Value) -> None:
        if text not in ("RZ", "URZ"):
            self.registers[text] = None if value is None else value & MASK

    def write_64(self, text: str, value: Value) -> None:
        self.write(text, value)
        if text not in ("RZ", "URZ"):
            self.write(_next(text), None if value is None else value >> 32)

    def predicate(self, text: str) -> Value:
        name = text.lstrip("!")
        value = 1 if name in ("PT", "UPT") else self.registers.get(name)
        return value if value is None or not text.startswith("!") else 1 - value

    def set_predicate(self, text: str, value: Value) -> None:
        if text not in ("PT", "UPT"):
            self.registers[text] = value

    # --- running ---

    def run(self, kernel: Kernel, limit: int = 2_000_000) -> Counter[str]:
        """How often each operation is issued until the thread ends."""
        counts: Counter[str] = Counter()
        at = 0
        for _ in range(limit):
            i = kernel.code[at]
            counts[i.op] += 1
            on = 1 if i.guard is None else self.predicate(i.guard)
            kind = i.op.split(".")[0]
            if kind == "EXIT" and (on or (on is None and i.guard is None)):
                return counts
            if kind == "BRA" and i.op in ("BRA", "BRA.U"):
                target = kernel.labels[re.search(r"\.L_x_\d+", i.operands[-1])[0]]  # type: ignore[index]
                for extra in i.operands[:-1]:
                    on = _and(on, self.predicate(extra))
                at = target if (on if on is not None else target > at) else at + 1
                continue
            if kind not in ("BRA", "EXIT", "CALL", "RET") and on != 0:
                self.step(i, on is None)
            at += 1
        raise RuntimeError(f"{kernel.name}: no end after {limit} instructions")

    def step(self, i: Instruction, unsure: bool) -> None:
        before = dict(self.registers) if unsure else None
        kind, *mods = i.op.split(".")
        handler = getattr(self, f"_{kind.removeprefix('U').lower()}", None)
        if kind in ("STG", "STS", "ST", "SYNCS", "UBLKCP", "BAR", "BSSY", "BSYNC", "NOP"):
            if "TRYWAIT" in mods:
                self.set_predicate(i.operands[0], 1)
            return
        if handler is None:
            self._unknown(i)
        else:
            handler(mods, list(i.operands))
        if before is not None:  # it may not have run: what it changed is not known
            for name, value in self.registers.items():
                if before.get(name, value) != value:
                    self.registers[name] = None

    def _unknown(self, i: Instruction) -> None:
        wide = 4 if ".128" in i.op else 2 if any(m in i.op for m in (".64", "WIDE")) else 1
        for n, operand in enumerate(i.operands[:2]):
            if re.fullmatch(r"U?P\d", operand):
                self.set_predicate(operand, None)
            elif re.fullmatch(r"U?R\d+", operand):
                if n == 0 or re.fullmatch(r"U?P(\d|T)", i.operands[0]):
                    for _ in range(wide):
                        self.write(operand, None)
                        operand = _next(operand)
                return

    # --- integer instructions ---

    def _mov(self, mods: list[str], o: list[str]) -> None:
        self.write(o[0], self.read(o[1]))

    def _s2r(self, mods: list[str], o: list[str]) -> None:
        self.write(o[0], self.special.get(o[1]))

    _s2ur = _s2r

    def _r2ur(self, mods: list[str], o: list[str]) -> None:
        self.write(o[-2], self.read(o[-1]))

    def _cs2r(self, mods: list[str], o: list[str]) -> None:
        (self.write if mods[:1] == ["32"] else self.write_64)(o[0], 0 if o[1] == "SRZ" else None)

    def _ldc(self, mods: list[str], o: list[str]) -> None:
        if "64" in mods:
            self.write_64(o[0], self.read_64(o[1]))
        else:
            value = self.constant(o[1])
            self.write(o[0], value & 0xFF if value is not None and "U8" in mods else value)

    def _ldg(self, mods: list[str], o: list[str]) -> None:
        place = re.search(r"(?<!desc)\[(U?R\d+)(?:\.64)?(?:\+(U?R\d+))?(?:\+?(-?0x[0-9a-f]+))?\]", o[1])
        base = self.read_64(place[1]) if place and not place[2] else None
        at = None if base is None or place is None else base + int(place[3] or "0", 16)
        words = 4 if "128" in mods else 2 if "64" in mods else 1
        name = o[0]
        for word in range(words):
            self.write(name, None if at is None else self.words.get(at + 4 * word))
            name = _next(name)

    def _iadd3(self, mods: list[str], o: list[str]) -> None:
        out, *rest = o
        carries = []
        while re.fullmatch(r"U?P(\d|T)", rest[0]):
            carries.append(rest.pop(0))
        inputs, carry_in = rest[:3], rest[3:] if "X" in mods else []
        total: Value = 0
        for text in inputs:
            # A subtrahend enters as its complement and a carry, which only matters where a carry leaves.
            value = self.read(text)
            total = None if total is None or value is None else total + value
            if value == 0 and text.startswith("-") and total is not None:
                total += 1 << 32
        for text in carry_in:
            value = self.predicate(text)
            if text == "!PT" or text == "!UPT":
                value = 0
            total = None if total is None or value is None else total + value
        self.write(out, total)
        for n, name in enumerate(carries):
            self.set_predicate(name, None if total is None else int(total >> 32 > n))

    def _imad(self, mods: list[str], o: list[str]) -> None:
        if "HI" in mods:
            return self.write(o[0], None)
        out, *rest = o
        if re.fullmatch(r"U?P(\d|T)", rest[0]):
            self.set_predicate(rest.pop(0), None)
        a, b = self.read(rest[0]), self.read(rest[1])
        product: Value = None if a is None or b is None else a * b
        if a == 0 or b == 0:
            product = 0
        if "WIDE" in mods:
            if product is not None and a is not None and b is not None and "U32" not in mods:
                product = _signed(a) * _signed(b)
            c = self.read_64(rest[2])
            return self.write_64(out, None if product is None or c is None else product + c)
        c = self.read(rest[2])
        total = None if product is None or c is None else product + c
        if "X" in mods:
            carry = self.predicate(rest[3])
            total = None if total is None or carry is None else total + carry
        self.write(out, total)

    def _lea(self, mods: list[str], o: list[str]) -> None:
        out, *rest = o
        carry_out = rest.pop(0) if re.fullmatch(r"U?P(\d|T)", rest[0]) else None
        a, b = self.read(rest[0]), self.read(rest[1])
        total: Value
        if "HI" in mods:
            top = rest.pop(2) if len(rest) > 3 and not re.fullmatch(r"!?U?P(\d|T)", rest[3]) else None
            if "SX32" in mods:
                high: Value = None if a is None else (MASK if a & 0x80000000 else 0)
                shift = int(rest[2], 16)
            else:
                high = 0 if top is None else self.read(top)
                shift = int(rest[2], 16)
            wide = None if a is None or high is None else (high << 32 | a) << shift
            total = None if wide is None or b is None else ((wide >> 32) & MASK) + b
            if "X" in mods:
                carry = self.predicate(rest[-1])
                total = None if total is None or carry is None else total + carry
        else:
            shift = int(rest[2], 16) if len(rest) > 2 and rest[2].startswith("0x") else 0
            total = None if a is None or b is None else ((a << shift) & MASK) + b
        self.write(out, total)
        if carry_out:
            self.set_predicate(carry_out, None if total is None else int(total > MASK))

    def _isetp(self, mods: list[str], o: list[str]) -> None:
        a, b = self.read(o[2]), self.read(o[3])
        other = self.predicate(o[4])
        result: Value = None
        if a is not None and b is not None:
            less, equal = (a < b, a == b) if "U32" in mods else (_signed(a) < _signed(b), a == b)
            if "EX" in mods:  # the high words: the low ones decide where these are equal
                low = self.predicate(o[5])
                ordered = {"LT": less, "GT": not less and not equal, "LE": less, "GE": not less and not equal}
                if mods[0] in ordered:
                    result = low if equal else int(ordered[mods[0]])
                elif low is not None:
                    result = int(equal and bool(low)) if mods[0] == "EQ" else int(not equal or bool(low))
            else:
                table = {"LT": less, "LE": less or equal, "EQ": equal, "NE": not equal,
                         "GE": not less, "GT": not less and not equal}  # fmt: skip
                result = int(table[mods[0]])
        combined = _or(result, other) if "OR" in mods else _and(result, other)
        self.set_predicate(o[0], combined)
        if o[1] not in ("PT", "UPT"):
            self.set_predicate(o[1], None if result is None else _and(1 - result, other))

    def _fsetp(self, mods: list[str], o: list[str]) -> None:
        """Numbers that are not known are taken to be ordinary: neither zero nor equal to one another."""
        result = {"NEU": 1, "NE": 1, "EQ": 0, "EQU": 0}.get(mods[0])
        other = self.predicate(o[4]) if len(o) > 4 else 1
        self.set_predicate(o[0], _or(result, other) if "OR" in mods else _and(result, other))
        self.set_predicate(o[1], None)

    def _elect(self, mods: list[str], o: list[str]) -> None:
        self.set_predicate(o[0], 1)

    def _sel(self, mods: list[str], o: list[str]) -> None:
        choice = self.predicate(o[3])
        a, b = self.read(o[1]), self.read(o[2])
        self.write(o[0], (a if a == b else None) if choice is None else (a if choice else b))

    def _shf(self, mods: list[str], o: list[str]) -> None:
        low, shift, high = self.read(o[1]), self.read(o[2]), self.read(o[3])
        if low is None or shift is None or high is None:
            if low is None and "L" in mods and "HI" not in mods:
                return self.write(o[0], None)
            if not (high is not None and "R" in mods and "HI" in mods and shift is not None):
                return self.write(o[0], None)
            low = 0
        wide = high << 32 | low
        shift = min(shift, 64)
        if "R" in mods:
            bits = wide - (1 << 64) if any(m in mods for m in ("S32", "S64")) and high & 0x80000000 else wide
            if "HI" in mods:
                return self.write(o[0], (bits >> 32) >> shift)
            return self.write(o[0], bits >> shift)
        self.write(o[0], (wide << shift) >> 32 if "HI" in mods else low << shift)

    def _lop3(self, mods: list[str], o: list[str]) -> None:
        predicate = o.pop(0) if re.fullmatch(r"U?P(\d|T)", o[0]) else None
        a, b, c = (self.read(x) for x in o[1:4])
        table = int(o[4], 16)
        result: Value = None
        if a is not None and b is not None and c is not None:
            result = 0
            for bit in range(8):
                if table >> bit & 1:
                    part = (a if bit & 4 else ~a) & (b if bit & 2 else ~b) & (c if bit & 1 else ~c)
                    result |= part & MASK
        self.write(o[0], result)
        if predicate:
            self.set_predicate(predicate, None if result is None else int(result != 0))

    def _plop3(self, mods: list[str], o: list[str]) -> None:
        a, b, c = (self.predicate(x) for x in o[2:5])
        table = int(o[5], 16)
        for name, bits in ((o[0], table), (o[1], int(o[6], 16) if len(o) > 6 else 0)):
            if name in ("PT", "UPT"):
                continue
            options = {bits >> (4 * x + 2 * y + z) & 1
                       for x in ((0, 1) if a is None else (a,)) for y in ((0, 1) if b is None else (b,))
                       for z in ((0, 1) if c is None else (c,))}  # fmt: skip
            self.set_predicate(name, options.pop() if len(options) == 1 else None)

    def _viadd(self, mods: list[str], o: list[str]) -> None:
        a, b = self.read(o[1]), self.read(o[2])
        self.write(o[0], None if a is None or b is None else a + b)

    def _vimnmx(self, mods: list[str], o: list[str]) -> None:
        a, b, least = self.read(o[1]), self.read(o[2]), self.predicate(o[-1])
        if a is None or b is None or least is None:
            return self.write(o[0], None)
        key = (lambda x: x) if "U32" in mods else _signed
        self.write(o[0], min(a, b, key=key) if least else max(a, b, key=key))

    _imnmx = _vimnmx

    def _viaddmnmx(self, mods: list[str], o: list[str]) -> None:
        a, b, c, least = self.read(o[1]), self.read(o[2]), self.read(o[3]), self.predicate(o[-1])
        if a is None or b is None or c is None or least is None:
            return self.write(o[0], None)
        key = (lambda x: x) if "U32" in mods else _signed
        total = (a + b) & MASK
        self.write(o[0], min(total, c, key=key) if least else max(total, c, key=key))

    def _prmt(self, mods: list[str], o: list[str]) -> None:
        a, choice, b = self.read(o[1]), self.read(o[2]), self.read(o[3])
        if a is None or b is None or choice is None or choice & 0x8888:
            return self.write(o[0], None)
        wide = b << 32 | a
        self.write(o[0], sum((wide >> 8 * (choice >> 4 * n & 7) & 0xFF) << 8 * n for n in range(4)))


def _next(register: str) -> str:
    head, number = re.fullmatch(r"(U?R)(\d+)", register).groups()  # type: ignore[union-attr]
    return f"{head}{int(number) + 1}"


def _and(a: Value, b: Value) -> Value:
    return 0 if a == 0 or b == 0 else None if a is None or b is None else 1


def _or(a: Value, b: Value) -> Value:
    return 1 if a == 1 or b == 1 else None if a is None or b is None else 0
