"""What a finished file runs in, one module a format. None imports torch unless the runtime is torch itself."""
