"""What the pages say is checked: commands, job files, links, and the parts of plugins.md in a real run."""
