"""Where processes come from: the only package that imports ray, and the supervised child that needs none."""
