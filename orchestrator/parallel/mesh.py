"""The device mesh of a layout: one dimension per axis whose degree is above 1."""

from __future__ import annotations

from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from orchestrator.plan.layout import AXES, Layout


def build_expert_mesh(layout: Layout, device_type: str) -> DeviceMesh | None:
    """Return the mesh in which data ranks are (copies of experts, experts); None when experts are not spread."""
    if layout.expert == 1:
        return None
    copies = layout.num_data_ranks // layout.expert
    names = ("pipeline", "expert_replicate", "expert", "context", "tensor")
    degrees = (layout.pipeline, copies, layout.expert, layout.context, layout.tensor)
    return init_device_mesh(device_type, degrees, mesh_dim_names=names)


def build_mesh(layout: Layout, device_type: str) -> DeviceMesh | None:
    """Return the mesh with named axes in the order of `AXES`; None for a single process."""
    named = [(axis, degree) for axis, degree in zip(AXES, layout.degrees, strict=True) if degree > 1]
    if not named:
        return None
    return init_device_mesh(
        device_type, tuple(degree for _, degree in named), mesh_dim_names=tuple(axis for axis, _ in named)
    )


def data_group(mesh: DeviceMesh | None, layout: Layout) -> ProcessGroup | None:
    """Return the ranks that take other tokens of the same batch through the same layers; None when there are none."""
    axes = tuple(axis for axis in ("replicate", "shard", "context") if getattr(layout, axis) > 1)
    if mesh is None or not axes:
        return None
    if len(axes) == 1:
        return mesh.get_group(axes[0])
    return mesh[axes]._flatten("data").get_group()
