"""Groups and logs across processes and machines, through Redis or Valkey.

It needs coredis: ``pip install trio-wknet[redis]``.
"""

from __future__ import annotations

from trio_wknet.contrib.redis._cluster import Cluster, ClusterStatistics, open_cluster
from trio_wknet.contrib.redis._errors import BrokerError, BrokerRefused, BrokerUnavailable
from trio_wknet.contrib.redis._gaps import Gap
from trio_wknet.contrib.redis._group import ClusterGroup
from trio_wknet.contrib.redis._log import Follower, Log

__all__ = [
    "BrokerError",
    "BrokerRefused",
    "BrokerUnavailable",
    "Cluster",
    "ClusterGroup",
    "ClusterStatistics",
    "Follower",
    "Gap",
    "Log",
    "open_cluster",
]
