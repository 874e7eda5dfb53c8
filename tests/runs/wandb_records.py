"""Reads a .wandb file, the log of an offline run, in the format of LevelDB's logs.

wandb 0.31 has no reader in Python any more. The records are decoded with its own protocol buffers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def payloads(path: Path) -> Iterator[bytes]:
    """The records of a file, up to the first that is not complete."""
    data, at, parts = path.read_bytes(), HEADER, b""
    assert data[:HEADER] == b":W&B" + bytes.fromhex("e1be00"), data[:HEADER]  # the magic number and version 0
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        at += HEADER
        if kind == 0 or at + length > len(data):
            return
        parts = data[at : at + length] if kind in (FULL, FIRST) else parts + data[at : at + length]
        at += length
        if kind in (FULL, LAST):
            yield parts


def history(path: Path) -> list[dict[str, float]]:
    """The logged rows in order: `step` and the metrics by name, without wandb's own values."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for payload in payloads(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        if record.WhichOneof("record_type") == "history":
            items = {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in record.history.item}
            step = items.pop("_step")
            rows.append({"step": step} | {name: value for name, value in items.items() if not name.startswith("_")})
    return rows
