"""The engine: migrates real memory, of this process or of a running program, with what the kernel offers."""
