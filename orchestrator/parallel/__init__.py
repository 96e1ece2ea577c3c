"""The parallel axes: process group, device mesh, initialisation, the order in which axes are applied, gradient norm."""
