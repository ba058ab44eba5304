/*
 * What mechanisms share whose pages stay where they are: a trap is a permission that the entry lacks. A page is never without
 * its contents, whatever fails: the worst outcome is a page that stays. When the last descriptor is closed the kernel gives
 * all permissions back.
 */
#include <errno.h>

#include "internal.h"

int arm_in_place(struct nt_pager *pager, struct pages run)
{
	uint64_t unit = run.segment->unit;
	int uffd = uffd_of(pager, run.segment);
	if (!pager->mechanism->protect(uffd, address_of(pager, run.segment, run.first), run.count * pager->page_size, true)) {
		set_states(pager, run, NT_ARMED);
		return 0;
	}
	for (uint64_t page = 0; page < run.count; page += unit) {
		struct pages one = part(run, page, unit);
		int number = pager->mechanism->protect(uffd, address_of(pager, one.segment, one.first), unit * pager->page_size, true);
		if (number == EAGAIN) {
			set_states(pager, part(run, page, run.count - page), NT_PLANNED);
			return EAGAIN;
		}
		if (!number)
			set_states(pager, one, NT_ARMED);
		else
			conclude(pager, one, number == ENOENT || number == ESRCH ? NT_UNMAPPED : NT_UNSUITABLE);
	}
	return 0;
}

/* Stop trapping a run and wake its waiters; a run that is half unmapped is done page by page. */
static void unprotect(struct nt_pager *pager, int uffd, uint64_t address, uint64_t size, uint64_t step)
{
	int number = pager->mechanism->protect(uffd, address, size, false);
	pager->gone |= number == ESRCH;
	if (!number || pager->gone)
		return;
	for (uint64_t done = 0; done < size; done += step)
		if (pager->mechanism->protect(uffd, address + done, step, false))
			wake_range(uffd, address + done, step);
}

int give_back_in_place(struct nt_pager *pager, struct pages run, uint64_t to, uint8_t state)
{
	unprotect(pager, uffd_of(pager, run.segment), to, run.count * pager->page_size, run.segment->unit * pager->page_size);
	conclude(pager, run, state);
	return 0;
}

int resolve_stray_in_place(struct nt_pager *pager, int uffd, uint64_t page)
{
	int number = pager->mechanism->protect(uffd, page, pager->page_size, false);
	if (number)
		wake_range(uffd, page, pager->page_size);
	return number;
}
