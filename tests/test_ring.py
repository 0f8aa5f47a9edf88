"""RingBuffer, and through it the native ring and its leases, against a bytearray."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from array import array
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from trio_wknet import RingBuffer

capacities = st.sampled_from([1, 2, 511, 512, 513, 1000, 1024, 5000, 1 << 16]) | st.integers(
    1, 3000
)
counts = st.none() | st.integers(0, 3000) | st.just(2**70)


class RingMachine(RuleBasedStateMachine):
    """Every byte written carries its own number, so that a byte out of place
    shows wherever it turns up."""

    views = Bundle("views")

    @initialize(capacity=capacities)
    def open(self, capacity: int) -> None:
        self.ring = RingBuffer(capacity)
        self.capacity = capacity
        self.model = bytearray()
        self.written = 0
        # By id: the view (which may be a slice), and what it must show.
        self.leased: dict[int, tuple[memoryview, bytes]] = {}

    def next_bytes(self, n: int) -> bytes:
        return bytes((i * 7 + (i >> 8)) & 0xFF for i in range(self.written, self.written + n))

    @rule(n=st.integers(0, 3000), kind=st.sampled_from([bytes, bytearray, memoryview]))
    def write(self, n: int, kind: Any) -> None:
        data = self.next_bytes(n)
        fitted = self.ring.write(kind(data))
        assert fitted == min(n, self.capacity - len(self.model))
        self.model += data[:fitted]
        self.written += fitted

    @rule(most=counts)
    def read(self, most: int | None) -> None:
        expected = bytes(self.model[:most])
        if expected and self.leased:
            with pytest.raises(BufferError, match=f"{len(expected)} bytes"):
                self.ring.read(most)
            return
        assert self.ring.read(most) == expected
        del self.model[: len(expected)]

    @rule(n=st.integers(0, 3000))
    def discard(self, n: int) -> None:
        if n > len(self.model):
            with pytest.raises(ValueError, match=f"n must be .* not {n}$"):
                self.ring.discard(n)
        elif n and self.leased:
            with pytest.raises(BufferError):
                self.ring.discard(n)
        else:
            self.ring.discard(n)
            del self.model[:n]

    @rule(target=views, most=counts)
    def peek(self, most: int | None) -> memoryview:
        view = self.ring.peek(most)
        assert view.readonly
        assert view == self.model[:most]
        if view:
            self.leased[id(view)] = (view, bytes(view))
        return view

    @rule(target=views, view=views, start=st.integers(0, 100))
    def slice_of_a_view(self, view: memoryview, start: int) -> memoryview:
        """Pins as much as the whole."""
        part = view[start:]
        if id(view) in self.leased:
            self.leased[id(part)] = (part, self.leased[id(view)][1][start:])
        return part

    @rule(view=consumes(views))
    def release(self, view: memoryview) -> None:
        self.leased.pop(id(view), None)
        view.release()

    @rule(view=views, n=st.integers(0, 3000))
    def write_what_a_view_shows(self, view: memoryview, n: int) -> None:
        data = bytes(view[:n])
        fitted = self.ring.write(view[:n])
        assert fitted == min(len(data), self.capacity - len(self.model))
        self.model += data[:fitted]

    @rule(
        at=st.integers(0, 3000),
        length=st.integers(1, 5),
        start=st.integers(0, 3001),
    )
    def find(self, at: int, length: int, start: int) -> None:
        needle = bytes(self.model[at : at + length]) or b"\r\n"
        assert self.ring.find(needle, start) == self.model.find(needle, start)

    @rule(needle=st.binary(min_size=1, max_size=3), start=st.integers(0, 10))
    def find_anything(self, needle: bytes, start: int) -> None:
        assert self.ring.find(needle, start) == self.model.find(needle, start)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert len(self.ring) == len(self.model) <= self.ring.capacity == self.capacity

    @invariant()
    def views_show_what_they_showed(self) -> None:
        for view, shown in self.leased.values():
            assert view == shown

    def teardown(self) -> None:
        del self.ring
        gc.collect()
        self.views_show_what_they_showed()


TestRing = RingMachine.TestCase


# -- Views -----------------------------------------------------------------------


def test_a_view_outlives_its_ring() -> None:
    ring = RingBuffer(100)
    ring.write(b"something")
    view = ring.peek()
    del ring
    gc.collect()
    assert bytes(view) == b"something"


def test_a_view_outlives_the_block_it_was_in() -> None:
    ring = RingBuffer(1 << 20)
    ring.write(b"a" * 500)
    view = ring.peek()
    ring.write(b"b" * 100_000)  # moves to a larger block
    again = ring.peek()
    assert view == b"a" * 500
    assert again == b"a" * 500 + b"b" * 100_000


def test_bytes_that_wrap_are_moved_and_older_views_stay() -> None:
    ring = RingBuffer(512)
    ring.write(bytes(512))
    ring.discard(500)
    ring.write(b"wrapped around" * 10)
    head = ring.peek(5)
    whole = ring.peek()
    assert head == bytes(5)
    assert whole == bytes(12) + b"wrapped around" * 10


def test_a_pinned_ring_refuses_until_the_last_view_is_gone() -> None:
    ring = RingBuffer(10)
    ring.write(b"0123456789")
    first = ring.peek(3)
    second = ring.peek()
    tail = second[8:]
    for view in (first, second):
        view.release()
        with pytest.raises(BufferError, match="view from peek"):
            ring.discard(1)
        assert ring.read(0) == b""
        ring.discard(0)
    del tail
    assert ring.read() == b"0123456789"


def test_an_empty_view_pins_nothing() -> None:
    ring = RingBuffer(10)
    empty = ring.peek()
    ring.write(b"x")
    none = ring.peek(0)
    assert ring.read() == b"x"
    assert len(empty) == len(none) == 0


def test_a_view_is_read_only() -> None:
    ring = RingBuffer(10)
    ring.write(b"x")
    with pytest.raises(TypeError):
        ring.peek()[0] = 1


class Holder(RingBuffer):
    """Its instances can be part of a cycle."""

    view: memoryview


def test_a_cycle_of_ring_and_view_is_collected() -> None:
    holder = Holder(100)
    holder.write(b"something")
    holder.view = holder.peek()
    gone = weakref.ref(holder)
    del holder
    gc.collect()
    assert gone() is None


def test_a_view_may_be_dropped_by_another_thread() -> None:
    ring = RingBuffer(100)
    ring.write(b"something")
    views = [ring.peek() for _ in range(100)]
    thread = threading.Thread(target=views.clear)
    thread.start()
    thread.join()
    assert ring.read() == b"something"


def test_a_lease_cannot_be_made() -> None:
    ring = RingBuffer(100)
    ring.write(b"something")
    lease = ring.peek().obj
    with pytest.raises(TypeError, match="peek"):
        type(lease)()


# -- Memory ----------------------------------------------------------------------


def test_it_is_small_while_it_is_empty() -> None:
    rings = [RingBuffer(1 << 30) for _ in range(10_000)]
    assert all(len(ring) == 0 for ring in rings)
    assert sys.getsizeof(rings[0]) < 200


def test_views_hold_no_references_back() -> None:
    ring = RingBuffer(100)
    ring.write(b"something")
    before = sys.getrefcount(ring)
    views = [ring.peek() for _ in range(50)]
    assert sys.getrefcount(ring) == before + 50
    views.clear()
    assert sys.getrefcount(ring) == before


# -- Arguments -------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, -1, (1 << 30) + 1, 2**70, -(2**70)])
def test_capacity_out_of_range(capacity: int) -> None:
    with pytest.raises(ValueError, match=rf"capacity must be from 1 to 1073741824, not {capacity}"):
        RingBuffer(capacity)


@pytest.mark.parametrize("value", [None, 1.0, "1", True, b"1"])
def test_no_integer(value: Any) -> None:
    ring = RingBuffer(10)
    with pytest.raises(TypeError, match="capacity must be an integer, not"):
        RingBuffer(value)
    with pytest.raises(TypeError, match=f"n must be an integer, not {value!r}"):
        ring.discard(value)
    with pytest.raises(TypeError, match="start must be an integer"):
        ring.find(b"x", value)
    if value is not None:
        with pytest.raises(TypeError, match="max_bytes must be an integer"):
            ring.read(value)
        with pytest.raises(TypeError, match="max_bytes must be an integer"):
            ring.peek(value)


@pytest.mark.parametrize("value", [-1, -(2**70)])
def test_negative(value: int) -> None:
    ring = RingBuffer(10)
    for call, name in (
        (ring.discard, "n"),
        (ring.read, "max_bytes"),
        (ring.peek, "max_bytes"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be at least 0, not {value}"):
            call(value)
    with pytest.raises(ValueError, match=f"start must be at least 0, not {value}"):
        ring.find(b"x", value)


@pytest.mark.parametrize("data", ["text", 5, None, memoryview(b"abcd")[::2]])
def test_data_that_is_no_bytes(data: Any) -> None:
    ring = RingBuffer(10)
    with pytest.raises(TypeError, match="data must be contiguous and bytes-like, not"):
        ring.write(data)
    assert len(ring) == 0


def test_data_is_let_go_of() -> None:
    data = bytearray(b"abc")
    ring = RingBuffer(2)
    assert ring.write(data) == 2
    data.append(0)  # would raise BufferError while exported
    assert ring.write(array("i", [1])) == 0


def test_delimiters() -> None:
    ring = RingBuffer(10)
    ring.write(b"a\r\nb")
    assert ring.find(bytearray(b"\r\n")) == 1
    assert ring.find(memoryview(b"\r\n"), 2) == -1
    assert ring.find(b"x" * 11) == -1
    assert ring.find(b"b", 2**70) == -1
    with pytest.raises(ValueError, match="delimiter must hold at least 1 byte"):
        ring.find(b"")
    with pytest.raises(TypeError, match="delimiter must be bytes-like, not 'b'"):
        ring.find("b")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="delimiter must be bytes-like, not 5"):
        ring.find(5)  # type: ignore[arg-type]


def test_repr_and_truth() -> None:
    ring = RingBuffer(10)
    assert not ring
    ring.write(b"abc")
    assert ring
    assert repr(ring) == "<trio_wknet.RingBuffer 3 of 10 bytes>"
