"""What the load generator takes, from where it connects, and how it counts latency."""

from __future__ import annotations

import errno
import math
import resource
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wknet._load import target as load_target
from trio_wknet._load.options import LoadOptions
from trio_wknet._load.protocol import PROTOCOLS, Protocol, exchange
from trio_wknet._native.load.histogram import Histogram

# -- Options -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "more", "error", "says"),
    [
        ((1, 80), {}, TypeError, "host must be a str, not 1"),
        (("h",), {}, ValueError, "port: host 'h' goes with a port, not None"),
        (("h", 0), {}, ValueError, "port must be from 1 to 65535, not 0"),
        (("h", 65536), {}, ValueError, "port must be from 1 to 65535, not 65536"),
        (("h", "80"), {}, TypeError, "port must be an int, not '80'"),
        (("unix:///s", 80), {}, ValueError, "port: host 'unix:///s' goes with no port, not 80"),
        (("unix://s",), {}, ValueError, "host: .*'unix://s' must hold an absolute path"),
        (("unix:///" + "x" * 200,), {}, ValueError, "takes 201 bytes, .* at most 107"),
        (("h", 80), {"connections": 0}, ValueError, "connections must be from 1 .* not 0"),
        (("h", 80), {"connections": True}, TypeError, "connections must be an int, not True"),
        (("h", 80), {"connections": 1.5}, TypeError, "connections must be an int, not 1.5"),
        (("h", 80), {"size": 0}, ValueError, "size must be from 1 to .* not 0"),
        (("h", 80), {"protocol": "ws"}, ValueError, "protocol must be one of raw, .* not 'ws'"),
        (("h", 80), {"protocol": None}, TypeError, "protocol must be a str, not None"),
        (
            ("h", 80),
            {"protocol": "websocket", "size": (1 << 24) + 1},
            ValueError,
            "size: a message of protocol websocket can have at most 16777216 .* not 16777217",
        ),
        (("h", 80), {"depth": -1}, ValueError, "depth must be from 1 to .* not -1"),
        (("h", 80), {"rate": 0}, ValueError, "rate must be from 0.001 to 1e.08, not 0"),
        (("h", 80), {"rate": math.nan}, ValueError, "rate must be .* not nan"),
        (("h", 80), {"rate": "fast"}, TypeError, "rate must be a number, not 'fast'"),
        (("h", 80), {"count": 0}, ValueError, "count must be from 1 to .* not 0"),
        (("h", 80), {"verify": 1}, TypeError, "verify must be a bool, not 1"),
        (("h", 80), {"churn": "no"}, TypeError, "churn must be a bool, not 'no'"),
        (("h", 80), {"duration": 0}, ValueError, "duration must be from 0.001 .* not 0"),
        (("h", 80), {"duration": None}, TypeError, "duration must be a number, not None"),
        (("h", 80), {"warmup": -0.1}, ValueError, "warmup must be from 0 .* not -0.1"),
        (("h", 80), {"grace": math.inf}, ValueError, "grace must be from 0 .* not inf"),
        (("h", 80), {"connect_timeout": 0}, ValueError, "connect_timeout must be .* not 0"),
        (("h", 80), {"ramp_timeout": 0}, ValueError, "ramp_timeout must be .* not 0"),
        (("h", 80), {"connecting": 0}, ValueError, "connecting must be from 1 .* not 0"),
        (("h", 80), {"sources": 251}, ValueError, "sources must be from 0 to 250, not 251"),
        (("h", 80), {"churn": True, "rate": 1.0}, ValueError, "rate: churn has no rate.* 1.0"),
        (("h", 80), {"churn": True, "depth": 2}, ValueError, "depth: churn has one .* not 2"),
        (
            ("h", 80),
            {"connections": 1 << 20, "depth": 1 << 10},
            ValueError,
            r"depth: at most .* not 1048576 \* 1024",
        ),
    ],
)
def test_bad_arguments_are_named(
    args: tuple[Any, ...], more: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        LoadOptions(*args, **more)


def test_defaults_depend_on_the_mode() -> None:
    closed = LoadOptions("h", 80)
    assert (closed.mode, closed.real_depth, closed.real_warmup) == ("closed", 1, 1.0)
    paced = LoadOptions("h", 80, rate=30, duration=0.1, warmup=0)
    assert (paced.mode, paced.real_depth, paced.scheduled) == ("open", 64, 3)
    churn = LoadOptions("h", 80, churn=True, count=5)
    assert (churn.mode, churn.real_depth, churn.real_warmup) == ("churn", 1, 0.0)


# -- Protocols -----------------------------------------------------------------


@given(st.sampled_from(PROTOCOLS[1:]), st.integers(1, 3000))
def test_patterns_have_a_prime_number_of_different_messages(protocol: Protocol, size: int) -> None:
    made = exchange(protocol, size, "h")
    counts = set()
    for stream in (made.outbound, made.inbound):
        number, rest = divmod(len(stream.pattern), stream.message)
        assert rest == 0
        assert stream.stride % stream.message == 0
        assert 0 < stream.stride < len(stream.pattern)
        counts.add(number)
    (number,) = counts
    assert number >= 7
    assert all(number % divisor for divisor in range(2, number))
    if size >= 32:  # shorter ones may be alike by chance
        inbound = made.inbound
        starts = range(0, len(inbound.pattern), inbound.message)
        assert len({inbound.pattern[i : i + inbound.message] for i in starts}) == number


@pytest.mark.parametrize("protocol", PROTOCOLS[1:])
def test_patterns_of_large_messages_are_bounded(protocol: Protocol) -> None:
    made = exchange(protocol, 100_000, "h")
    assert len(made.outbound.pattern) == 7 * made.outbound.message
    assert made.outbound.message - 100_000 in (4, 14)


# -- Addresses and descriptors -------------------------------------------------


@pytest.mark.parametrize(
    ("host", "wanted", "connections", "churn", "number"),
    [
        ("127.0.0.1", None, 100, False, 0),
        ("127.0.0.1", None, 20_001, False, 2),
        ("127.9.9.9", None, 100_000, False, 5),
        ("127.0.0.1", None, 1, True, 64),
        ("127.0.0.1", 0, 100_000, True, 0),
        ("127.0.0.1", 3, 1, False, 3),
        ("192.0.2.1", None, 100_000, True, 0),
        ("192.0.2.1", 0, 1, False, 0),
    ],
)
def test_how_many_sources(
    host: str, wanted: int | None, connections: int, churn: bool, number: int
) -> None:
    target = load_target.pack(socket.AF_INET, (host, 80))
    assert load_target.pick_sources(target, wanted, connections, churn) == number
    assert len(load_target.pack_sources(number)) == number


@pytest.mark.parametrize("host", ["192.0.2.1", "::1"])
def test_sources_are_for_ipv4_loopback(host: str) -> None:
    with pytest.raises(ValueError, match=r"sources: .* so not 2"):
        load_target.pick_sources(load_target.resolve(host, 80, 1), 2, 1, False)


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(socket.gaierror, match=r"'no such host\.invalid'"):
        load_target.resolve("no such host.invalid", 80, 1)


def test_too_few_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 5000))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    load_target.reserve_descriptors(10)
    assert limits == []
    load_target.reserve_descriptors(4000)
    assert [hard for _, hard in limits] == [5000]
    with pytest.raises(OSError, match=r"5000 connections .* the limit is 5000") as caught:
        load_target.reserve_descriptors(5000)
    assert caught.value.errno == errno.EMFILE


# -- The histogram -------------------------------------------------------------

DURATIONS = st.lists(st.integers(0, 100_000_000_000), min_size=1, max_size=60)
PERCENTS = (0, 1, 25, 50, 75, 90, 99, 99.9, 100)


def exact(values: list[int], percent: float) -> int:
    rank = math.ceil(round(percent * len(values) / 100, 6))
    return sorted(values)[max(rank, 1) - 1]


def recorded(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(DURATIONS)
def test_percentiles_are_within_a_hundredth(values: list[int]) -> None:
    histogram = recorded(values)
    for percent in PERCENTS:
        true = exact(values, percent)
        assert true <= histogram.percentile(percent) <= true * 1.01
    assert (len(histogram), histogram.min, histogram.max) == (
        len(values),
        min(values),
        max(values),
    )
    assert histogram.mean == pytest.approx(sum(values) / len(values))


@given(DURATIONS, DURATIONS)
def test_merged_histograms_count_as_one(left: list[int], right: list[int]) -> None:
    merged = recorded(left)
    merged.merge(recorded(right))
    whole = recorded(left + right)
    assert merged.buckets() == whole.buckets()
    assert sum(number for _, number in merged.buckets()) == len(merged) == len(whole)
    assert (merged.min, merged.max, merged.mean) == (whole.min, whole.max, whole.mean)


@given(st.integers(0, 2**37 - 1))
def test_each_bucket_knows_its_top(value: int) -> None:
    [(top, number)] = recorded([value]).buckets()
    assert number == 1
    assert value <= top <= value + value / 128
    assert recorded([top]).buckets() == [(top, 1)]
    assert recorded([top + 1]).buckets()[0][0] >= top


def test_what_is_longer_than_the_range_keeps_its_maximum() -> None:
    histogram = recorded([1, 2**63])
    assert histogram.percentile(50) == 1
    assert histogram.percentile(100) == histogram.max == 2**63


def test_an_empty_histogram() -> None:
    histogram = Histogram()
    assert (len(histogram), histogram.min, histogram.max, histogram.mean) == (0, 0, 0, 0.0)
    assert (histogram.percentile(99), histogram.buckets()) == (0, [])


@pytest.mark.parametrize("percent", [-1, 100.1, math.nan])
def test_a_bad_percentile(percent: float) -> None:
    with pytest.raises(ValueError, match="percent must be from 0 to 100"):
        Histogram().percentile(percent)


def test_a_negative_duration() -> None:
    with pytest.raises(OverflowError):
        Histogram().record(-1)
