"""Entries that forbid writing (UFFDIO_WRITEPROTECT): stores to any process's memory, on kernels without RWP."""

from __future__ import annotations

from ...linux.procfs import Smap
from ...linux.userfaultfd import Feature
from .mechanism import Mechanism, is_anonymous, is_shared_memory

__all__ = ["WRITE_PROTECT"]


def _can_trap(smap: Smap, features: Feature) -> bool:
    mapping = smap.mapping
    shared = is_shared_memory(smap) and mapping.shared and Feature.WP_HUGETLBFS_SHMEM in features
    return mapping.writable and (is_anonymous(smap) or shared)


WRITE_PROTECT = Mechanism(
    name="write_protect",
    traps="stores",
    memory="anonymous, shared and hugetlb memory, writable, of any process",
    purpose="any process's memory, when it is written",
    death="the kernel removes every protection; contents were never out of place",
    since="5.7",
    features=Feature.PAGEFAULT_FLAG_WP | Feature.THREAD_ID,
    more_features=Feature.WP_HUGETLBFS_SHMEM,  # since Linux 5.19
    foreign=True,
    inline=False,
    can_trap=_can_trap,
)
