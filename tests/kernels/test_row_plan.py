"""Tests of the division of rows among thread blocks (csrc/common/row_plan.h), which need no GPU."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from paw_fast.kernels import native

HOPPER = (227 << 10, 228 << 10)  # shared memory of a block, of a multiprocessor
DEVICES = {"sm_80": (163 << 10, 164 << 10), "sm_86": (99 << 10, 100 << 10), "sm_90": HOPPER}
HEADER, UNIT, ALIGN, CHUNK = 512, 8, 64, 16384

if native._native is None:
    pytest.skip("the extension is not compiled", allow_module_level=True)


def plan(n, size, device=HOPPER, forced=0):
    return native._native.row_plan(n, size, *device, forced)


def covers(slices, n):
    """Asserts that the slices are contiguous from 0 to n and aligned to 16 bytes for both element sizes."""
    at = 0
    for begin, count, *_ in slices:
        assert begin == min(at, n)
        assert count >= 0
        assert begin % ALIGN == 0 or count == 0
        at += count
    assert at == n


@hypothesis_settings(max_examples=400)
@given(n=st.integers(1, 1 << 20), size=st.sampled_from([2, 4]), forced=st.sampled_from([0, 1, 2, 4, 8]))
def test_every_element_is_in_one_slice_and_every_byte_in_one_copy(n, size, forced):
    got = plan(n, size, forced=forced)
    covers(got["parts"], n)
    if got["reason"] is not None:
        assert not got["blocks"]
        assert HEADER + size * -(-n // (forced or 8)) > HOPPER[0] - size * ALIGN
        return
    blocks = got["blocks"]
    covers(blocks, n)
    assert len(blocks) in ((forced,) if forced else (1, 2, 4, 8))
    assert got["shared_bytes"] <= HOPPER[0]
    for _, count, chunks in blocks:
        assert HEADER + -(-count // UNIT) * UNIT * size <= got["shared_bytes"]  # the last unit is readable
        assert len(chunks) <= 16
        assert all(0 < c <= CHUNK and c % 16 == 0 for c in chunks)  # far below 2^20 - 1, the limit of a barrier
        assert all(c == CHUNK for c in chunks[:-1])
        assert 0 <= count * size - sum(chunks) < 16  # the rest, which threads copy


@pytest.mark.parametrize(
    ("n", "size", "cluster"),
    [
        (32000, 2, 1), (49152, 2, 2), (128256, 2, 4), (151936, 2, 4), (262144, 2, 8),
        (32000, 4, 2), (151936, 4, 8), (262144, 4, 8), (1, 2, 1),
    ],
)  # fmt: skip
def test_clusters_of_known_vocabularies(n, size, cluster):
    got = plan(n, size)
    assert len(got["blocks"]) == cluster
    if n * size <= 8 * 76288:
        assert 3 * (got["shared_bytes"] + 1024) <= HOPPER[1]  # three blocks per multiprocessor


def test_rows_without_a_cluster():
    assert "does not fit" in plan(1 << 20, 2)["reason"]
    assert "before sm_90" in plan(1000, 2, (-1, 164 << 10))["reason"]
    assert plan(900_000, 2)["reason"] is None


@given(n=st.integers(1, 1 << 20), size=st.sampled_from([2, 4]), device=st.sampled_from(sorted(DEVICES)))
def test_kept_elements_are_whole_rounds_or_the_row(n, size, device):
    per_block, per_processor = DEVICES[device]
    round_, scratch = 512 * UNIT, 256
    kept = native._native.kept_elements(n, size, round_, scratch, per_block, per_processor)
    assert kept % round_ == 0
    assert 0 < kept < n + round_
    assert scratch + kept * size <= per_block
    if kept < n:  # there is no space for another round
        assert scratch + (kept + round_) * size > per_block
