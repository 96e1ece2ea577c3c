"""The digits CNN, but its blocks are not declared."""

from orchestrator.models.cnn import Config, build, layer_costs, layer_names, shape

__all__ = ["Config", "build", "layer_costs", "layer_names", "shape"]
