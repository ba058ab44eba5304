/*
 * Another process is made to open a userfaultfd.
 *
 * The descriptor is never among the program's own. Where it was even for a moment, a fork in another thread would take a
 * copy along, which keeps the traps alive when the migrator is gone. So the stopped thread is made to clone itself into a
 * process that shares its memory and none of its descriptors; the clone opens the userfaultfd, which works on the memory
 * they share, only this process makes it do anything, and it is gone before the thread goes on.
 */
#include "injection.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "message.h"
#include "thread.h"

#define DEVICE "/dev/userfaultfd"
#define DEVICE_NEW _IO(0xaa, 0x00) /* USERFAULTFD_IOC_NEW, Linux 6.1 */
#define FLAGS (O_CLOEXEC | O_NONBLOCK)
#define SCRATCH 4096 /* bytes: the kernel rounds up */
#define MOST_PATH 64

/* ---- what /proc says of the thread ---- */

static void path_of(char path[MOST_PATH], const struct target *target, pid_t thread, const char *name)
{
	snprintf(path, MOST_PATH, "/proc/%d/task/%d/%s", target->pid, thread, name);
}

/* The process has not ended, and so its numbers are its own; and the thread is one of its. */
static bool is_there(const struct target *target, pid_t thread)
{
	char path[MOST_PATH];
	struct pollfd end = {.fd = target->pidfd, .events = POLLIN};
	path_of(path, target, thread, "");
	return !access(path, F_OK) && !poll(&end, 1, 0);
}

struct status {
	char state;
	long tracer, seccomp;
};

static const char *field(const char *text, const char *name)
{
	const char *found = strstr(text, name);
	return found ? found + strlen(name) : "0";
}

static struct failure read_status(const struct target *target, pid_t thread, struct status *status)
{
	char path[MOST_PATH], text[8192];
	path_of(path, target, thread, "status");
	int file = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t size = file < 0 ? -1 : read(file, text, sizeof text - 1);
	int number = errno;
	if (file >= 0)
		close(file);
	if (size < 0)
		return number == ENOENT || number == ESRCH ? failure(ENDED) : failed_call("read", number);
	text[size] = 0;
	status->state = *field(text, "\nState:\t");
	status->tracer = atol(field(text, "\nTracerPid:\t"));
	status->seccomp = atol(field(text, "\nSeccomp:\t"));
	return failure(NOTHING);
}

/* Why it cannot be seized: a thread that has ended, or is traced by now, cannot be, either. */
static struct failure why_forbidden(const struct target *target, pid_t thread)
{
	struct status status;
	TRY(read_status(target, thread, &status));
	if (!is_there(target, thread) || strchr("ZX", status.state))
		return failure(ENDED);
	return status.tracer ? (struct failure){.what = TRACED, .number = status.tracer} : failure(FORBIDDEN);
}

static struct failure seize(const struct target *target, struct thread *thread)
{
	struct failure failed = thread_seize(thread);
	if (failed.what)
		return failed.what == FORBIDDEN ? why_forbidden(target, thread->id) : failed;
	/* A seized thread keeps its id. With the process alive and the thread in it, no other one was mistaken for it. */
	return is_there(target, thread->id) ? failed : failure(ENDED);
}

/* Its next child would be the first of a pid namespace, which has no file before that. */
static bool begins_a_namespace(const struct target *target, pid_t thread)
{
	char path[MOST_PATH];
	struct stat own, next;
	path_of(path, target, thread, "ns/pid");
	if (stat(path, &own) && errno == ENOENT) /* this kernel has none */
		return false;
	path_of(path, target, thread, "ns/pid_for_children");
	return stat(path, &next) || own.st_dev != next.st_dev || own.st_ino != next.st_ino;
}

/* ---- calls ---- */

/* A call that has to succeed. */
static struct failure do_call(struct thread *thread, const char *name, struct call call, long *result)
{
	TRY(thread_call(thread, call, result));
	return *result < 0 ? failed_call(name, -*result) : failure(NOTHING);
}

/* Memory of the target. The thread maps and unmaps it, which outlives its clone. */
static struct failure map_scratch(struct thread *thread, long *scratch)
{
	struct call call = {SYS_mmap, {0, SCRATCH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -UINT64_C(1), 0}};
	return do_call(thread, "mmap", call, scratch);
}

static struct failure unmap_scratch(struct thread *thread, long scratch)
{
	long result;
	return do_call(thread, "munmap", (struct call){SYS_munmap, {(uint64_t)scratch, SCRATCH}}, &result);
}

static struct failure first_of(struct failure one, struct failure other)
{
	return one.what ? one : other;
}

/* The kernel can be one without CONFIG_CHECKPOINT_RESTORE, and the program one that can map nothing more. */
static struct failure ask_exit_word(struct thread *thread, uint64_t *word)
{
	long scratch, result;
	struct failure failed = map_scratch(thread, &scratch);
	if (failed.what)
		return failed.what == CALL ? failure(NOTHING) : failed;
	failed = thread_call(thread, (struct call){SYS_prctl, {PR_GET_TID_ADDRESS, (uint64_t)scratch}}, &result);
	if (!failed.what && !result)
		thread_peek(thread, (uint64_t)scratch, word);
	return first_of(failed, unmap_scratch(thread, scratch));
}

/* ---- /dev/userfaultfd ---- */

/* Make the clone receive one descriptor from its socket `end`; `number` is the one it gets. */
static struct failure receive_descriptor(struct thread *clone, uint64_t scratch, int end, long *number)
{
	enum { VECTOR = 64, DATA = 80, CONTROL = 96 };
	struct msghdr header = {
		.msg_iov = (void *)(uintptr_t)(scratch + VECTOR),
		.msg_iovlen = 1,
		.msg_control = (void *)(uintptr_t)(scratch + CONTROL),
		.msg_controllen = CMSG_SPACE(sizeof(int)),
	};
	struct iovec vector = {(void *)(uintptr_t)(scratch + DATA), 1};
	uint64_t words[(VECTOR + sizeof vector) / sizeof(uint64_t)] = {0}, word;
	long result;
	memcpy(words, &header, sizeof header);
	memcpy((char *)words + VECTOR, &vector, sizeof vector);
	TRY(thread_poke(clone, scratch, words, sizeof words / sizeof *words));
	TRY(do_call(clone, "recvmsg", (struct call){SYS_recvmsg, {(uint64_t)end, scratch, MSG_CMSG_CLOEXEC}}, &result));
	if (!thread_peek(clone, scratch + CONTROL + CMSG_LEN(0), &word))
		return failed_call("ptrace", EIO);
	*number = (int)word;
	return failure(NOTHING);
}

static struct failure copy_descriptor(int pidfd, int number, int *copy)
{
	*copy = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);
	if (*copy >= 0)
		return failure(NOTHING);
	return errno == ESRCH ? failure(ENDED) : failed_call("pidfd_getfd", errno);
}

/* Lend the clone `device`; `number` is what it has it as. */
static struct failure lend(struct thread *clone, int pidfd, int device, uint64_t scratch, long *number)
{
	uint64_t ends;
	int end;
	long result;
	TRY(do_call(clone, "socketpair", (struct call){SYS_socketpair, {AF_UNIX, SOCK_DGRAM, 0, scratch}}, &result));
	if (!thread_peek(clone, scratch, &ends))
		return failed_call("ptrace", EIO);
	TRY(copy_descriptor(pidfd, (int)ends, &end));
	struct failure failed = message_send(end, "device", device);
	close(end);
	return failed.what ? failed : receive_descriptor(clone, scratch, (int)(ends >> 32), number);
}

/* The number of the clone's open device; negative if it may not have one. */
static struct failure open_device(struct thread *clone, int pidfd, int device, uint64_t scratch, long *number)
{
	uint64_t path[(sizeof DEVICE + sizeof(uint64_t) - 1) / sizeof(uint64_t)] = {0};
	memcpy(path, DEVICE, sizeof DEVICE);
	TRY(thread_poke(clone, scratch, path, sizeof path / sizeof *path));
	struct call call = {SYS_openat, {(uint64_t)AT_FDCWD, scratch, O_RDWR | O_CLOEXEC | O_NONBLOCK}};
	TRY(thread_call(clone, call, number));
	return *number >= 0 || device < 0 ? failure(NOTHING) : lend(clone, pidfd, device, scratch, number);
}

/*
 * Have the clone make a userfaultfd from /dev/userfaultfd; `number` is its number, or -EPERM if it may not.
 *
 * It opens the device by itself: then whatever it has, its user could have had as well. For a clone has its program's
 * user, and while it lives any process of that user can take what it has (pidfd_getfd), and keep it. Only if `device`,
 * one of ours that is meant to be lent, is one does it get that.
 */
static struct failure through_device(struct thread *thread, struct thread *clone, int pidfd, int device, long *number)
{
	long scratch, opened;
	TRY(map_scratch(thread, &scratch));
	struct failure failed = open_device(clone, pidfd, device, (uint64_t)scratch, &opened);
	*number = -EPERM;
	if (!failed.what && opened >= 0)
		failed = thread_call(clone, (struct call){SYS_ioctl, {(uint64_t)opened, DEVICE_NEW, FLAGS}}, number);
	return first_of(failed, unmap_scratch(thread, scratch));
}

/* ---- the clone ---- */

/* Shared first and emptied then: a copy of the table would hold the program's files open, and flush them when it is closed. */
static struct failure empty_table(struct thread *clone)
{
	long result;
	TRY(thread_call(clone, (struct call){SYS_close_range, {0, ~0u, CLOSE_RANGE_UNSHARE}}, &result));
	if (result >= 0)
		return failure(NOTHING);
	return do_call(clone, "unshare", (struct call){SYS_unshare, {CLONE_FILES}}, &result); /* before Linux 5.9 */
}

static struct failure check_number(long number)
{
	switch (-number) {
	case EPERM:
		return failure(USERFAULTFD);
	case EMFILE:
	case ENFILE:
		return failure(DESCRIPTORS);
	default:
		return number < 0 ? failed_call("userfaultfd", -number) : failure(NOTHING);
	}
}

static struct failure open_in_clone(struct thread *thread, struct thread *clone, int pidfd, int device, int *descriptor)
{
	long number;
	TRY(thread_call(clone, (struct call){SYS_userfaultfd, {FLAGS}}, &number));
	if (number == -EPERM)
		TRY(through_device(thread, clone, pidfd, device, &number));
	TRY(check_number(number));
	return copy_descriptor(pidfd, (int)number, descriptor);
}

static struct failure use_clone(struct thread *thread, struct thread *clone, int device, int *descriptor)
{
	TRY(thread_await(clone));
	TRY(empty_table(clone));
	int pidfd = (int)syscall(SYS_pidfd_open, clone->id, 0);
	if (pidfd < 0)
		return failed_call("pidfd_open", errno);
	struct failure failed = open_in_clone(thread, clone, pidfd, device, descriptor);
	close(pidfd);
	return failed;
}

static struct failure open_by_clone(struct thread *thread, int device, int *descriptor)
{
	struct thread clone;
	long number, result;
	TRY(thread_clone(thread, CLONE_VM | CLONE_FILES, &clone, &number));
	struct failure failed = use_clone(thread, &clone, device, descriptor);
	thread_kill(&clone);
	return first_of(failed, thread_call(thread, (struct call){SYS_wait4, {(uint64_t)number, 0, __WALL, 0}}, &result));
}

/* ---- the whole ---- */

static struct failure work(const struct request *request, struct thread *thread, int device, struct taken *taken)
{
	struct status status;
	TRY(read_status(&request->target, thread->id, &status));
	if (status.seccomp) /* since it was looked at */
		return failure(SECCOMP);
	if (begins_a_namespace(&request->target, thread->id))
		return failure(NAMESPACE);
	TRY(open_by_clone(thread, device, &taken->descriptor));
	return request->exit_word ? ask_exit_word(thread, &taken->exit_word) : failure(NOTHING);
}

struct failure take_userfaultfd(const struct request *request, struct taken *taken)
{
	struct thread thread = {.id = request->thread, .instruction = request->instruction};
	*taken = (struct taken){.descriptor = -1};
	TRY(seize(&request->target, &thread));
	int device = request->lend ? open(DEVICE, O_RDWR | O_CLOEXEC) : -1; /* this user may not be allowed to */
	int64_t begin = clock_now();
	struct failure failed = thread_stop(&thread);
	if (!failed.what) {
		failed = work(request, &thread, device, taken);
		failed = first_of(failed, thread_release(&thread));
	}
	taken->stopped_ns = clock_now() - begin;
	if (device >= 0)
		close(device);
	return failed;
}

struct failure interrupt_thread(const struct target *target, pid_t number)
{
	struct thread thread = {.id = number};
	TRY(seize(target, &thread));
	return thread_nudge(&thread);
}
