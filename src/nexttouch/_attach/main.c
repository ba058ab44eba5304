/*
 * The short-lived process that makes another one open a userfaultfd; nexttouch.live.injection starts it.
 *
 * usage: attacher take PID THREAD PIDFD INSTRUCTION CHANNEL [lend] [exit-word]
 *        attacher interrupt PID PIDFD [THREAD ...]
 *
 * PIDFD is a descriptor of process PID, CHANNEL a socket for the answer. That is one message of words:
 *   taken STOPPED EXIT_WORD  with the descriptor; nanoseconds for which the thread stood still, and an address or 0
 *   WORD NUMBER              it failed, see `failure_words`; NUMBER is the tracer's, or 0
 *   call NAME ERRNO          a call to the kernel failed
 *
 * A process of its own, because an injector that is killed half-way leaves a thread behind that runs on with registers
 * which are not its own. This one ignores every signal, is in a session of its own, is the last that the kernel kills when
 * memory runs out, runs before all that compute, and stays for milliseconds. When its starter is gone, it finishes, and
 * then closes the descriptor. What remains is SIGKILL aimed at this process between the first injected call and the
 * release, a fraction of a millisecond: then the target crashes.
 */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "injection.h"
#include "message.h"

enum { TAKE_WORDS = 7, INTERRUPT_WORDS = 4 };

static const char *const failure_words[FAILURES] = {
	[ENDED] = "ended",
	[FORBIDDEN] = "forbidden",
	[TRACED] = "traced",
	[UNSTOPPED] = "unstopped",
	[NOT_64_BIT] = "not-64-bit",
	[REPLACED] = "replaced",
	[DISPATCHES] = "dispatches",
	[SECCOMP] = "seccomp",
	[NAMESPACE] = "namespace",
	[PROCESSES] = "processes",
	[DESCRIPTORS] = "descriptors",
	[USERFAULTFD] = "userfaultfd",
	[CALL] = "call",
};

static void shield(void)
{
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	signal(SIGCHLD, SIG_DFL); /* by which the kernel tells of stops, but not one that ignores it */
	/* A thread that stands still waits for no other program; as far as this user may. */
	sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
	int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (file < 0)
		return;
	(void)!write(file, "-1000", 5); /* without CAP_SYS_RESOURCE it is as likely a victim as its parent */
	close(file);
}

static void take(const struct request *request, int channel)
{
	char text[128];
	struct taken taken;
	struct failure failed = take_userfaultfd(request, &taken);
	if (!failed.what)
		snprintf(text, sizeof text, "taken %lld %llu", (long long)taken.stopped_ns, (unsigned long long)taken.exit_word);
	else if (failed.what == CALL)
		snprintf(text, sizeof text, "call %s %ld", failed.call, failed.number);
	else
		snprintf(text, sizeof text, "%s %ld", failure_words[failed.what], failed.number);
	message_send(channel, text, failed.what ? -1 : taken.descriptor); /* its starter can have ended */
}

static bool says(char **options, const char *option)
{
	while (*options)
		if (!strcmp(*options++, option))
			return true;
	return false;
}

int main(int count, char **words)
{
	shield();
	if (count >= TAKE_WORDS && !strcmp(words[1], "take")) {
		const struct request request = {
			.target = {.pid = atoi(words[2]), .pidfd = atoi(words[4])},
			.thread = atoi(words[3]),
			.instruction = strtoull(words[5], NULL, 10),
			.lend = says(words + TAKE_WORDS, "lend"),
			.exit_word = says(words + TAKE_WORDS, "exit-word"),
		};
		take(&request, atoi(words[6]));
		return 0;
	}
	if (count >= INTERRUPT_WORDS && !strcmp(words[1], "interrupt")) {
		const struct target target = {.pid = atoi(words[2]), .pidfd = atoi(words[3])};
		for (char **word = words + INTERRUPT_WORDS; *word; word++)
			interrupt_thread(&target, atoi(*word)); /* one that has ended, or is traced, looks again for that */
		return 0;
	}
	return 2;
}
