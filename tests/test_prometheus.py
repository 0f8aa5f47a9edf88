"""`trio_wknet.contrib.prometheus`: what a scrape says."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import dialled, echo, is_served, read, two_conns, until, url

from trio_wknet import Engine, Listener, open_engine

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from trio_wknet.contrib.prometheus import FAMILIES, LATENCIES, SIZES, WknetCollector

LOCAL = "tcp://127.0.0.1:0"
as_openmetrics: Any = openmetrics.generate_latest
parsed: Any = text_string_to_metric_families
DASHBOARD = Path(__file__).parent.parent / "docs" / "metrics" / "dashboard.json"


def registry_of(engines: Any, **options: Any) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(WknetCollector(engines, **options))
    return registry


def label(listener: Listener) -> str:
    address = listener.address
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"


def total(registry: CollectorRegistry, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    samples = [sample for family in registry.collect() for sample in family.samples]
    found = [sample for sample in samples if sample.name == name]
    assert found, name
    return sum(
        sample.value for sample in found if labels.items() <= sample.labels.items()
    )  # fmt: skip


@asynccontextmanager
async def echoing(engine: Engine, address: str = LOCAL) -> AsyncIterator[Listener]:
    async with trio.open_nursery() as nursery:
        listener = await nursery.start((await engine.listen(address)).serve, echo)
        yield listener
        nursery.cancel_scope.cancel()


async def test_a_scrape(engine: Engine, kind: str, tmp_path: Path) -> None:
    registry = registry_of(engine)
    address = LOCAL if kind == "tcp" else f"unix://{tmp_path}/socket"
    async with echoing(engine, address) as listener:
        its = {"engine": "default", "listener": label(listener)}
        async with await engine.connect(url(listener)) as conn:
            await conn.send_all(b"hello")
            assert await read(conn, 5) == b"hello"

            def get(name: str, **labels: str) -> float | None:
                return registry.get_sample_value(name, {**its, **labels})

            assert get("wknet_connections", state="open") == 1
            assert get("wknet_connections", state="waiting") == 0
            assert get("wknet_accepts_total") == 1
            assert get("wknet_handlers") == 1
            assert get("wknet_received_bytes_total") == get("wknet_sent_bytes_total") == 5
            assert get("wknet_closes_total", reason="eof") == 0
            assert get("wknet_refusals_total", reason="accept_rate") == 0
            assert get("wknet_buffered_bytes", direction="in") == 0
            # The client's has no listener. The sum is the engine's.
            assert total(registry, "wknet_connections", state="open") == 2
            assert total(registry, "wknet_received_bytes_total", listener="") == 5
        await until(lambda: get("wknet_closes_total", reason="eof") == 1)
        assert total(registry, "wknet_closes_total") == 2
        assert total(registry, "wknet_connects_total") == 1
    # A listener that is closed goes, and what it has counted stays.
    assert get("wknet_accepts_total") is None
    assert total(registry, "wknet_accepts_total") == 1
    assert total(registry, "wknet_received_bytes_total") == 10


async def test_it_is_openmetrics(engine: Engine) -> None:
    """Both formats can be parsed, and have every metric that the collector describes."""
    registry = registry_of({"main": engine})
    async with echoing(engine) as listener:
        await is_served(engine, listener)
        text = as_openmetrics(registry).decode()
        families = {family.name: family for family in parsed(text)}
        assert set(families) == {f"wknet_{family.name}" for family in FAMILIES}
        for family in families.values():
            assert family.documentation.endswith(".")
            assert family.samples, family.name
            assert {sample.labels["engine"] for sample in family.samples} == {"main"}
        assert b"# TYPE wknet_accepts_total counter" in generate_latest(registry)


async def test_several_engines(engine: Engine, reactors: int) -> None:
    async with open_engine(reactors) as another:
        registry = registry_of({"one": engine, "two": another})
        async with echoing(another) as listener:
            await is_served(engine, listener)
            assert total(registry, "wknet_accepts_total", engine="one") == 0
            assert total(registry, "wknet_accepts_total", engine="two") == 1
            assert total(registry, "wknet_connects_total", engine="one") == 1
    # One that is closed says nothing any more.
    assert total(registry, "wknet_accepts_total", engine="one") == 0
    engines = {sample.labels["engine"] for one in registry.collect() for sample in one.samples}
    assert engines == {"one"}


async def test_what_is_measured(engine: Engine) -> None:
    registry = registry_of(engine)
    async with echoing(engine) as listener:
        for _ in range(20):
            await is_served(engine, listener)
        for name in ("wknet_wake_latency_seconds", "wknet_batch_size"):
            found = engine.statistics()
            histogram = found.wake_latency if "latency" in name else found.batch_sizes
            assert histogram.count > 0
            last = 0.0
            for bound in LATENCIES if "latency" in name else SIZES:
                value = total(registry, f"{name}_bucket", le=repr(bound))
                assert value >= last
                last = value
            assert total(registry, f"{name}_bucket", le="+Inf") >= max(last, histogram.count)
            assert total(registry, f"{name}_count") >= histogram.count
            # The bounds are ones that the core has.
            assert set(LATENCIES if "latency" in name else SIZES) <= set(histogram.bounds)
        assert total(registry, "wknet_measured_seconds_total") > 0
        assert total(registry, "wknet_reactor_turns_total", reactor="0") > 0


async def test_measuring_can_be_left_off(engine: Engine) -> None:
    registry = registry_of(engine, measure=False)
    async with echoing(engine) as listener:
        await is_served(engine, listener)
    assert total(registry, "wknet_measured_seconds_total") == 0


async def test_broadcasts(engine: Engine) -> None:
    registry = registry_of(engine)
    async with two_conns(engine) as (client, server):
        group = engine.group()
        group.add(client)
        group.add(server)
        result = await (await group.broadcast(b"hello")).wait()
        assert total(registry, "wknet_broadcasts_total") == 1
        for kind in ("sent", "queued", "skipped", "closed"):
            expected = getattr(result, kind)
            assert total(registry, "wknet_broadcast_members_total", result=kind) == expected
        assert engine.statistics().broadcast_to["sent"] == result.sent


async def test_a_scrape_from_another_thread(engine: Engine) -> None:
    """As by prometheus_client's own server: Trio's thread reads, and goes on meanwhile."""
    registry = registry_of(engine)
    async with echoing(engine) as listener:
        await is_served(engine, listener)
        pages = await trio.to_thread.run_sync(generate_latest, registry)
        assert b'wknet_connects_total{engine="default"} 1.0' in pages


def test_a_scrape_after_the_run(reactors: int) -> None:
    found: list[CollectorRegistry] = []

    async def main() -> None:
        async with open_engine(reactors) as engine:
            found.append(registry_of(engine))

    trio.run(main)
    pages: list[bytes] = []
    thread = threading.Thread(target=lambda: pages.append(generate_latest(found[0])))
    thread.start()
    thread.join()
    assert b"# TYPE wknet_connections gauge" in pages[0]
    assert b"\nwknet_" not in pages[0]


async def test_two_listeners_of_one_address(engine: Engine) -> None:
    first = await engine.listen(LOCAL, reuse_port=True)
    async with first, await engine.listen(url(first), reuse_port=True) as second:
        registry = registry_of(engine)
        text = as_openmetrics(registry).decode()
        list(parsed(text))  # refuses what is there twice
        assert label(first) == label(second)
        assert f'listener="{label(first)} #2"' in text


async def test_what_is_refused_and_what_waits(engine: Engine) -> None:
    from trio_wknet import Admission

    admission = Admission(max_connections=1, when_full="refuse")
    async with await engine.listen(LOCAL, admission=admission) as listener:
        registry = registry_of(engine)
        with dialled(listener, 1):
            await until(lambda: total(registry, "wknet_connections", state="waiting") == 1)
            with dialled(listener, 1):
                await until(
                    lambda: total(registry, "wknet_refusals_total", reason="max_connections") == 1
                )
    assert total(registry, "wknet_refusals_total", reason="max_connections") == 1


async def test_bad_arguments(engine: Engine, reactors: int) -> None:
    for bad in (None, 1, "engine", ["engine"]):
        with pytest.raises(TypeError, match="engines must be an Engine or a mapping"):
            WknetCollector(bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="engines must have Engine objects"):
        WknetCollector({"main": 1})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="engines must have strings"):
        WknetCollector({1: engine})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="engines"):
        WknetCollector({})
    with pytest.raises(TypeError, match="measure"):
        WknetCollector(engine, measure=1)  # type: ignore[arg-type]
    async with open_engine(reactors) as closed:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        WknetCollector(closed)
    registry = registry_of(engine)
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(WknetCollector(engine))


def test_the_dashboard_names_metrics_that_are_there() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    exposed = set()
    for family in FAMILIES:
        name = f"wknet_{family.name}"
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"],
                "summary": ["_sum", "_count"], "gauge": [""]}[family.kind]  # fmt: skip
        exposed |= {name + end for end in ends}
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    variables = [variable["query"] for variable in dashboard["templating"]["list"]]
    text = " ".join([*expressions, *(str(query) for query in variables)])
    named = set(re.findall(r"\bwknet_\w+", text))
    assert len(expressions) >= 10
    assert named <= exposed
    labels = set(re.findall(r"(\w+)=~?\"", text)) | set(re.findall(r"by \(([\w, ]+)\)", text))
    known = {name for family in FAMILIES for name in family.labels} | {"le"}
    assert {name for group in labels for name in group.split(", ")} <= known


def test_the_page_has_every_metric() -> None:
    page = (DASHBOARD.parent.parent / "metrics.md").read_text()
    named = {name.removesuffix("_total") for name in re.findall(r"^\| .*", page, re.MULTILINE)
             for name in re.findall(r"`(wknet_\w+)`", name)}  # fmt: skip
    assert named == {f"wknet_{family.name}" for family in FAMILIES}
