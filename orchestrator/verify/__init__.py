"""Does the layout change the result? The same steps under a layout and on one process, every tensor compared."""
