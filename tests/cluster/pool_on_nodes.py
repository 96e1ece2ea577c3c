"""A pool on a joined cluster, as a script: `python -m tests.cluster.pool_on_nodes ADDRESS FOLDER`. Prints what it saw.

The cluster has two nodes with three CPUs each, the second with two GPUs that are there for Ray's accounts only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from orchestrator.cluster.pool import Pool
from orchestrator.cluster.session import RaySession
from orchestrator.plan.layout import Layout
from orchestrator.plan.plan import Resources


def need(workers: int, cpus: float, gpus: float = 0.0) -> Resources:
    return Resources(workers, cpus, gpus, "gloo", "cpu")


def where(pool: Pool) -> list[list[Any]]:
    """Return the node and the GPUs of every worker by gang, as Ray gave them."""
    import ray

    def look(_: Any) -> tuple[str, list[str]]:
        return ray.get_runtime_context().get_node_id(), ray.get_runtime_context().get_accelerator_ids()["GPU"]

    return [ray.get([actor.__ray_call__.remote(look) for actor in gang.actors], timeout=60) for gang in pool._gangs]


def main(address: str, folder: Path) -> None:
    """Form gangs of several sizes, and say where their workers are."""
    seen: dict[str, Any] = {}
    with RaySession(address, num_cpus=2, log_file=folder / "ray.log") as session:
        session.start()
        pool = Pool(session)
        seen["nodes"] = [(node.name, node.cpus, node.gpus) for node in pool.nodes]
        seen["three_of_two"] = pool.can_start(need(3, 2.0))
        for name, asked, count, layout in (
            ("pair", need(2, 2.0), 1, None),
            ("tensor", need(4, 1.0), 1, Layout(replicate=2, tensor=2)),
            ("shares", need(1, 0.25, 0.5), 9, None),
            ("large_shares", need(1, 0.25, 0.75), 9, None),
        ):
            pool.warm(asked, count, layout)
            seen[name] = where(pool)
            pool.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
