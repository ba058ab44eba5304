"""The executable VM: frames, page tables, TLBs, caches, locks, and every migration design as a strategy over them."""
