"""A Ray cluster of fake nodes on this machine: `python -m tests.cluster.fake_nodes CPUS CPUS:GPUS ...`.

GPUs are for Ray's accounts only. Prints its address, then lives until its standard input closes.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

_STORE_BYTES = 100 * 2**20


def main(nodes: list[tuple[float, float]]) -> None:
    """Start a node for each pair of CPUs and GPUs, the first of them the head."""
    kept, *more = [{"num_cpus": cpus, "num_gpus": gpus, "object_store_memory": _STORE_BYTES} for cpus, gpus in nodes]
    cluster = Cluster(initialize_head=True, head_node_args={**kept, "include_dashboard": False})
    for node in more:
        cluster.add_node(**node)
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    parts = [word.partition(":") for word in sys.argv[1:]]
    main([(float(cpus), float(gpus or 0)) for cpus, _, gpus in parts])
