"""How a model in memory becomes the file of a format, and how that file's weights become integers."""
