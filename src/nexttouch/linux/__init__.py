"""One thin typed module a kernel interface; nothing here decides anything.

A call takes and returns Python or NumPy values and raises `KernelError` with the errno; a feature that a kernel may
lack is found by trying it (see `nexttouch.linux.features`), never by comparing versions.
"""
