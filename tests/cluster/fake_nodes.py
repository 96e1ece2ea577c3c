"""A Ray cluster of fake nodes on this machine: `python -m tests.cluster.fake_nodes CPUS CPUS ...`.

Prints its address, then lives until its standard input closes.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

_OBJECT_STORE_BYTES = 100 * 2**20


def main(cpus: list[float]) -> None:
    """Start a node for each number of CPUs, the first of them the head."""
    node = {"object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": cpus[0]})
    for more in cpus[1:]:
        cluster.add_node(num_cpus=more, object_store_memory=_OBJECT_STORE_BYTES)
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main([float(word) for word in sys.argv[1:]])
