/* The mechanisms by number: a new one has its line here, and one in enum nt_mechanism. */
#include "internal.h"

static const struct mechanism *const mechanisms[] = {
	[NT_RELOCATE] = &relocate,
	[NT_WRITE_PROTECT] = &write_protect,
	[NT_RWP] = &rwp,
};

const struct mechanism *mechanism_of(enum nt_mechanism number)
{
	return mechanisms[number];
}

const char *nt_mechanism_name(int number)
{
	return number >= 0 && (size_t)number < sizeof mechanisms / sizeof *mechanisms ? mechanisms[number]->name : NULL;
}
