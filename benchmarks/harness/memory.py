"""What memory is in use: of a process, and of the kernel."""

from __future__ import annotations

from pathlib import Path

import attrs

PAGE = 4096


@attrs.frozen
class Footprint:
    """A process's own memory, in bytes. What the kernel holds for it is not in it."""

    resident: int
    private: int
    """Of that, what it shares with no other process."""

    @classmethod
    def of(cls, pid: int) -> Footprint:
        sizes = _sizes(f"/proc/{pid}/smaps_rollup")
        return cls(sizes["Rss"], sizes["Private_Clean"] + sizes["Private_Dirty"])


@attrs.frozen
class KernelMemory:
    """What the whole machine's kernel holds, in bytes."""

    slab: int
    """Its objects: sockets, files, epoll entries, and everything else."""
    buffers: int
    """Of TCP's sockets, both directions."""
    unavailable: int
    """Of all memory, what could not be given to another process."""
    caches: dict[str, int]
    """The slab memory by kind of object, where this process may look (as root)."""

    @classmethod
    def now(cls) -> KernelMemory:
        sizes = _sizes("/proc/meminfo")
        return cls(
            slab=sizes["Slab"],
            buffers=_tcp_pages() * PAGE,
            unavailable=sizes["MemTotal"] - sizes["MemAvailable"],
            caches=_caches(),
        )

    def since(self, before: KernelMemory) -> KernelMemory:
        """By how much it has grown."""
        names = self.caches.keys() & before.caches.keys()
        return KernelMemory(
            slab=self.slab - before.slab,
            buffers=self.buffers - before.buffers,
            unavailable=self.unavailable - before.unavailable,
            caches={name: self.caches[name] - before.caches[name] for name in names},
        )


def _sizes(path: str) -> dict[str, int]:
    """The lines ``Name:   123 kB`` of a file, in bytes."""
    words = (line.split() for line in Path(path).read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in words if line[-1] == "kB"}


def _tcp_pages() -> int:
    lines = Path("/proc/net/sockstat").read_text().splitlines()
    tcp = next(line.split() for line in lines if line.startswith("TCP:"))
    return int(tcp[tcp.index("mem") + 1])


def _caches() -> dict[str, int]:
    try:
        lines = Path("/proc/slabinfo").read_text().splitlines()[2:]
    except OSError:
        return {}
    found = {}
    for line in lines:
        facts, _, slabs = line.partition(": slabdata")
        name, *numbers = facts.split()
        pages_per_slab, number_of_slabs = int(numbers[4]), int(slabs.split()[1])
        found[name] = number_of_slabs * pages_per_slab * PAGE
    return found
