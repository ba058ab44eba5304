/* The pure functions on registers, for both processors: what they change, and that they leave the rest alone. */
#include "../../src/nexttouch/_attach/registers.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                                       \
	do {                                                                                                                   \
		if (!(condition)) {                                                                                            \
			fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                                                \
			exit(1);                                                                                               \
		}                                                                                                              \
	} while (0)

#define RESTART (-UINT64_C(514))

/* Places in struct user_regs_struct and in struct user_pt_regs. */
enum { R10 = 7, R9, R8, RAX, RCX, RDX, RSI, RDI, ORIG_RAX, RIP, X86_64_WORDS = 27 };
enum { X8 = 8, PC = 32, PSTATE, ARM64_WORDS };

struct word {
	unsigned place;
	uint64_t value;
};

static struct registers made(void)
{
	struct registers registers;
	for (unsigned place = 0; place < MOST_REGISTERS; place++)
		registers.words[place] = 1000 + place;
	return registers;
}

/* `after` is `before` with these words. */
static void check_changes(const struct registers *before, const struct registers *after, const struct word *words, size_t count)
{
	struct registers expected = *before;
	for (size_t number = 0; number < count; number++)
		expected.words[words[number].place] = words[number].value;
	for (unsigned place = 0; place < MOST_REGISTERS; place++)
		CHECK(after->words[place] == expected.words[place]);
}

#define CHECK_CHANGES(before, after, ...)                                                                                      \
	check_changes(before, after, (struct word[]){__VA_ARGS__}, sizeof(struct word[]){__VA_ARGS__} / sizeof(struct word))

static void check_tables(void)
{
	CHECK(architecture_x86_64.size == X86_64_WORDS * 8);
	CHECK(architecture_arm64.size == ARM64_WORDS * 8);
	CHECK(architecture_x86_64.instruction == 0x050f);
	CHECK(architecture_arm64.instruction == 0xd4000001);
}

static void check_prepare(void)
{
	const struct call call = {9, {1, 2, 3, 4, -UINT64_C(1), 6}};
	const uint64_t address = 0x7fff1234;
	struct registers before = made(), after = before;
	registers_prepare(&architecture_x86_64, &after, address, &call);
	CHECK_CHANGES(&before, &after, {RDI, 1}, {RSI, 2}, {RDX, 3}, {R10, 4}, {R8, -UINT64_C(1)}, {R9, 6}, {RAX, 9},
		      {RIP, address}, {ORIG_RAX, -UINT64_C(1)});
	before.words[PSTATE] = 0x80000c00; /* after an indirect branch */
	after = before;
	registers_prepare(&architecture_arm64, &after, address, &call);
	CHECK_CHANGES(&before, &after, {0, 1}, {1, 2}, {2, 3}, {3, 4}, {4, -UINT64_C(1)}, {5, 6}, {X8, 9}, {PC, address},
		      {PSTATE, 0x80000000});
}

static void check_results(void)
{
	const long values[] = {0, 5, -EPERM, -1, 0x7f0000001000};
	for (size_t number = 0; number < sizeof values / sizeof *values; number++) {
		struct registers registers = made();
		registers.words[RAX] = registers.words[0] = (uint64_t)values[number];
		CHECK(registers_result(&architecture_x86_64, &registers) == values[number]);
		CHECK(registers_result(&architecture_arm64, &registers) == values[number]);
	}
}

/* Of the calls that fail with EINTR after any stop only those that wait without a limit are restarted. */
static void check_resumed(void)
{
	static const struct {
		uint64_t call;
		struct word limit;
		int restarted;
	} cases[] = {
		{232, {R10, -UINT64_C(1)}, 1},            /* epoll_wait */
		{232, {R10, 0xffffffff}, 1},              /* as an int -1, upper half empty */
		{232, {R10, 0xdeadbeef00000000}, 0},      /* as an int 0, upper half anything */
		{232, {R10, 1000}, 0},
		{281, {R10, -UINT64_C(1)}, 1},            /* epoll_pwait */
		{281, {R10, 7}, 0},
		{441, {R10, 0}, 1},                       /* epoll_pwait2 */
		{441, {R10, 0x7fff0000}, 0},
		{128, {RDX, 0}, 1},                       /* rt_sigtimedwait */
		{128, {RDX, 0x7fff0000}, 0},
		{208, {R8, 0}, 1},                        /* io_getevents */
		{208, {R8, 0x7fff0000}, 0},
		{220, {R10, 0}, 1},                       /* semtimedop */
		{220, {R10, 0x7fff0000}, 0},
		{65, {RCX, 0}, 1},                        /* semop */
		{426, {R10, 1}, 1},                       /* io_uring_enter */
		{426, {R10, 1 | 8}, 0},
		{0, {RCX, 0}, 0},                         /* read: its EINTR is the kernel's decision */
		{-UINT64_C(1), {RCX, 0}, 0},              /* in no system call */
	};
	static const long others[] = {0, 1, -EBADF, -512, -516};
	for (size_t number = 0; number < sizeof cases / sizeof *cases; number++) {
		struct registers before = made(), after;
		before.words[RAX] = -(uint64_t)EINTR;
		before.words[ORIG_RAX] = cases[number].call;
		before.words[cases[number].limit.place] = cases[number].limit.value;
		after = before;
		architecture_x86_64.make_resumed(&after);
		CHECK_CHANGES(&before, &after, {RAX, cases[number].restarted ? RESTART : before.words[RAX]});
	}
	for (size_t number = 0; number < sizeof others / sizeof *others; number++) {
		struct registers before = made(), after;
		before.words[RAX] = (uint64_t)others[number];
		before.words[ORIG_RAX] = 232;
		before.words[R10] = -UINT64_C(1);
		after = before;
		architecture_x86_64.make_resumed(&after);
		check_changes(&before, &after, NULL, 0);
	}
	struct registers before = made(), after;
	before.words[0] = -(uint64_t)EINTR;
	after = before;
	architecture_arm64.make_resumed(&after);
	check_changes(&before, &after, NULL, 0);
}

int main(void)
{
	check_tables();
	check_prepare();
	check_results();
	check_resumed();
	return 0;
}
