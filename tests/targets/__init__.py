"""Programs that tests attach to, and those that attach and are killed."""
