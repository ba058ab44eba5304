/*
 * Kernel interfaces that Debian 12's headers lack, and thin wrappers of the calls that the C library has not.
 *
 * Sources: include/uapi/linux/userfaultfd.h (UFFDIO_MOVE: commit adef440691ba, 6.8;
 * UFFDIO_RWPROTECT: 7.3), include/uapi/linux/mempolicy.h.
 */
#ifndef NT_KERNEL_H
#define NT_KERNEL_H

#include <linux/userfaultfd.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#ifndef UFFDIO_MOVE
struct uffdio_move {
	uint64_t dst;
	uint64_t src;
	uint64_t len;
	uint64_t mode;
	int64_t move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#define UFFDIO_MOVE_MODE_DONTWAKE ((uint64_t)1 << 0)
#define UFFD_FEATURE_MOVE (1 << 16)
#endif

#ifndef UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES
#define UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES ((uint64_t)1 << 1)
#endif

#ifndef UFFDIO_RWPROTECT
struct uffdio_rwprotect {
	struct uffdio_range range;
	uint64_t mode;
};
#define UFFDIO_RWPROTECT _IOWR(UFFDIO, 0x09, struct uffdio_rwprotect)
#define UFFDIO_RWPROTECT_MODE_RWP ((uint64_t)1 << 0)
#define UFFDIO_REGISTER_MODE_RWP ((uint64_t)1 << 3)
#define UFFD_FEATURE_RWP (1 << 17)
#endif

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define NT_MPOL_DEFAULT 0
#define NT_MPOL_PREFERRED 1
#define NT_MPOL_MF_MOVE (1 << 1)
#define NT_MPOL_F_ADDR (1 << 1)

/* Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst): present, in swap, mapped only here. */
#define NT_ENTRY_PRESENT ((uint64_t)1 << 63)
#define NT_ENTRY_SWAPPED ((uint64_t)1 << 62)
#define NT_ENTRY_EXCLUSIVE ((uint64_t)1 << 56)

/* As many nodes as the kernel can be built with (CONFIG_NODES_SHIFT <= 10). */
#define NT_MAX_NODES 1024
#define NT_NODE_WORDS (NT_MAX_NODES / 64)

struct nt_nodemask {
	uint64_t words[NT_NODE_WORDS];
};

static inline long nt_set_mempolicy(int mode, const struct nt_nodemask *nodes)
{
	/* The kernel reads one bit less than the count it is told. */
	return syscall(SYS_set_mempolicy, mode, nodes->words, NT_MAX_NODES + 1UL);
}

/* The policy of the mapping at an address: its mode, negative if the kernel does not say. */
static inline int nt_policy_at(uint64_t address)
{
	int mode = -1;
	return syscall(SYS_get_mempolicy, &mode, NULL, 0UL, address, (unsigned long)NT_MPOL_F_ADDR) ? -1 : mode;
}

/* Migrate all pages of a range whose mapping has no policy to where the calling thread's policy takes them from. */
static inline long nt_migrate_by_policy(uint64_t address, uint64_t size)
{
	return syscall(SYS_mbind, address, size, NT_MPOL_DEFAULT, NULL, 0UL, (unsigned long)NT_MPOL_MF_MOVE);
}

static inline long nt_move_pages(pid_t pid, unsigned long count, void **pages, const int *nodes, int *status)
{
	return syscall(SYS_move_pages, pid, count, pages, nodes, status, NT_MPOL_MF_MOVE);
}

#endif
