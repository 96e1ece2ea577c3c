"""One wide net whose parts share its weights: trained once, its parts ranked as they are, for architecture search."""
