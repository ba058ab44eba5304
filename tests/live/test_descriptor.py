"""Getting a userfaultfd out of programs that do not know of it: they must not notice, whatever they are doing."""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

import nexttouch as nt
from nexttouch import _core
from nexttouch.errors import (
    FeatureMissing,
    InvalidArgument,
    KernelError,
    NoSuchProcess,
    TargetRefused,
)
from nexttouch.linux import procfs
from nexttouch.linux.pidfd import pidfd_getfd, pidfd_open
from nexttouch.linux.ptrace import StoppedThread
from nexttouch.linux.syscall import MACHINE, NUMBERS
from nexttouch.linux.userfaultfd import Event, Fault, FaultFlag, Feature, Mode, Userfaultfd
from nexttouch.live import descriptor, injection
from nexttouch.live.descriptor import acquire, check

HANG = 60.0
"""Seconds after which something that has not happened never will."""

PROGRAM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t handled;
static void handler(int number) { (void)number; handled++; }

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void ready(void) { printf("ready\n"); fflush(stdout); }

/* What a processor computes must not depend on being stopped: integers, floating point and flags in one loop. */
static uint64_t compute(long rounds)
{
    uint64_t state = 1;
    double sum = 0;
    for (long i = 0; i < rounds; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        sum += (double)(state >> 11) * 0x1p-53;
        if (state & 1)
            state ^= (uint64_t)(sum * 16);
    }
    return state;
}

static _Atomic int told;

/* The same again and again until the program is told to end; 0 if it was not the same each time. */
static void *compute_thread(void *argument)
{
    const long rounds = 1000 * 1000;
    uint64_t first = compute(rounds), same = 1;
    while (!told)
        same &= compute(rounds) == first;
    *(uint64_t *)argument = same ? first : 0;
    return NULL;
}

static void *ear(void *argument)
{
    char byte;
    told = read(0, &byte, 1) >= 0;
    return argument;
}

static void *late_reader(void *argument)
{
    char byte;
    (void)argument;
    ready();
    if (read(0, &byte, 1) == 1)
        printf("%c 0 0 0\n", byte);
    exit(0);
}

/* Forks whenever it is told to, and says what the child's number is. */
static void *forker(void *argument)
{
    char byte;
    (void)argument;
    while (read(0, &byte, 1) == 1) {
        pid_t child = fork();
        if (child == 0)
            return pause() ? NULL : argument;
        printf("%d\n", child);
        fflush(stdout);
    }
    return NULL;
}

static unsigned long spin_flag, aborts;
#ifdef __x86_64__
static void restartable(void)
{
    struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
    printf("%p %p\n", (void *)&spin_flag, (void *)&aborts);
    ready();
again:
    __asm__ goto(".pushsection .data.rel.local, \"aw\"\n\t.balign 32\n"
             "3:\n\t.long 0, 0\n\t.quad 1f, 2f - 1f, 4f\n\t.popsection\n\t"
             "leaq 3b(%%rip), %%rax\n\t"
             "movq %%rax, %0\n"
             "1:\n\tcmpq $0, %1\n\tje 1b\n"
             "2:\n\t"
             ".pushsection .text.unlikely, \"ax\"\n\t.byte 0x0f, 0xb9, 0x3d\n\t.long 0x53053053\n"
             "4:\n\tjmp %l[aborted]\n\t.popsection\n\t"
             :
             : "m"(area->rseq_cs), "m"(spin_flag)
             : "rax", "memory", "cc"
             : aborted);
    return;
aborted:
    __atomic_fetch_add(&aborts, 1, __ATOMIC_RELAXED);
    goto again;
}
#else
static void restartable(void) {}
#endif

int main(int count, char **words)
{
    const char *mode = words[1];
    double limit = count > 2 ? atof(words[2]) : 0;
    struct timespec span = {(time_t)limit, (long)((limit - (time_t)limit) * 1e9)};
    char buffer[64] = "";
    long result = 0;
    sigset_t all, none;

    sigfillset(&all);
    sigemptyset(&none);
    if (strcmp(mode, "sigsuspend") == 0 || strcmp(mode, "sigwaitinfo") == 0 || strcmp(mode, "pending") == 0)
        sigprocmask(SIG_BLOCK, &all, NULL);
    signal(SIGUSR1, handler);
    signal(SIGRTMIN, handler);
    if (strcmp(mode, "leaderless") != 0 && strcmp(mode, "restartable") != 0 && strcmp(mode, "page") != 0)
        ready();
    double begin = now();
    errno = 0;
    if (strcmp(mode, "nanosleep") == 0) {
        result = nanosleep(&span, NULL);
    } else if (strcmp(mode, "poll") == 0) {
        result = poll(NULL, 0, (int)(limit * 1000));
    } else if (strcmp(mode, "ppoll") == 0) {
        result = ppoll(NULL, 0, &span, NULL);
    } else if (strcmp(mode, "select") == 0) {
        struct timeval time = {span.tv_sec, span.tv_nsec / 1000};
        result = select(0, NULL, NULL, NULL, &time);
    } else if (strcmp(mode, "futex") == 0) {
        uint32_t word = 0;
        result = syscall(SYS_futex, &word, FUTEX_WAIT, 0, &span, NULL, 0);
    } else if (strcmp(mode, "read") == 0) {
        result = read(0, buffer, sizeof(buffer));
    } else if (strcmp(mode, "recv") == 0) {
        result = recv(0, buffer, sizeof(buffer), 0);
    } else if (strcmp(mode, "pause") == 0) {
        result = pause();
    } else if (strcmp(mode, "sigsuspend") == 0) {
        result = sigsuspend(&none);
    } else if (strcmp(mode, "sigwaitinfo") == 0) {
        result = sigwaitinfo(&all, NULL);
    } else if (strcmp(mode, "epoll") == 0) {
        struct epoll_event event = {.events = EPOLLIN};
        int queue = epoll_create1(0);
        epoll_ctl(queue, EPOLL_CTL_ADD, 0, &event);
        result = epoll_wait(queue, &event, 1, limit > 0 ? (int)(limit * 1000) : -1);
    } else if (strcmp(mode, "io_uring") == 0) {
        struct io_uring_params ring = {0};
        int queue = (int)syscall(SYS_io_uring_setup, 1, &ring);
        char *head = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, queue, IORING_OFF_SQ_RING);
        struct io_uring_sqe *entry = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, queue, IORING_OFF_SQES);
        *entry = (struct io_uring_sqe){.opcode = IORING_OP_POLL_ADD, .fd = 0, .poll_events = POLLIN};
        *(unsigned *)(head + ring.sq_off.tail) = 1;
        syscall(SYS_io_uring_enter, queue, 1, 0, 0, NULL, 0);
        result = syscall(SYS_io_uring_enter, queue, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    } else if (strcmp(mode, "semop") == 0) {
        int semaphores = semget(IPC_PRIVATE, 1, 0600);
        struct sembuf down = {0, -1, 0}, up = {0, 1, 0};
        if (fork() == 0) {
            result = read(0, buffer, 1);
            return (int)semop(semaphores, &up, 1);
        }
        result = semop(semaphores, &down, 1);
        semctl(semaphores, 0, IPC_RMID);
    } else if (strcmp(mode, "waitpid") == 0) {
        pid_t child = fork();
        if (child == 0)
            return (int)read(0, buffer, 1);
        result = waitpid(child, NULL, 0) == child;
    } else if (strcmp(mode, "compute") == 0) {
        uint64_t found;
        pthread_t thread;
        pthread_create(&thread, NULL, ear, NULL);
        compute_thread(&found);
        pthread_join(thread, NULL);
        result = (long)found;
    } else if (strcmp(mode, "threads") == 0) {
        uint64_t results[3];
        pthread_t threads[3];
        for (int i = 0; i < 3; i++)
            pthread_create(&threads[i], NULL, compute_thread, &results[i]);
        ear(NULL);
        for (int i = 0; i < 3; i++)
            pthread_join(threads[i], NULL);
        result = results[0] == results[1] && results[1] == results[2] ? (long)results[0] : 0;
    } else if (strcmp(mode, "leaderless") == 0) {
        pthread_t thread;
        pthread_create(&thread, NULL, late_reader, NULL);
        pthread_exit(NULL);
    } else if (strcmp(mode, "forker") == 0) {
        pthread_t thread;
        pthread_create(&thread, NULL, forker, NULL);
        pthread_join(thread, NULL);
    } else if (strcmp(mode, "alone") == 0) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_NPROC, &none);
        ready();
        result = read(0, buffer, 1);
    } else if (strcmp(mode, "unshare") == 0) {
        result = unshare(CLONE_NEWPID);
        ready();
        result += read(0, buffer, 1);
    } else if (strcmp(mode, "pending") == 0) {
        result = read(0, buffer, 1);
        sigprocmask(SIG_UNBLOCK, &all, NULL);
    } else if (strcmp(mode, "count") == 0) {
        /* A handler that runs cuts the read short; what interrupts must be a handler. */
        int before;
        do {
            before = handled;
            result = read(0, buffer, 1);
        } while (result < 0 && errno == EINTR && handled > before);
    } else if (strcmp(mode, "memory") == 0) {
        size_t size = (size_t)limit << 20;
        char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(memory, 7, size);
        ready();
        result = read(0, buffer, 1);
    } else if (strcmp(mode, "page") == 0) {
        char *page = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(page, 'a', 65536);
        printf("%p\n", (void *)page);
        ready();
        result = read(0, buffer, 1);
        result = read(0, page, 1);
        memcpy(buffer, page, 2);
    } else if (strcmp(mode, "restartable") == 0) {
        restartable();
    } else if (strcmp(mode, "seccomp") == 0) {
        struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        struct sock_fprog filter = {1, &allow};
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
        ready();
        result = read(0, buffer, 1);
    } else if (strcmp(mode, "dispatch") == 0) {
        static char selector; /* allow */
        prctl(59 /* PR_SET_SYSCALL_USER_DISPATCH */, 1, 0, 0, &selector);
        ready();
        result = read(0, buffer, 1);
    } else if (strcmp(mode, "undumpable") == 0) {
        prctl(PR_SET_DUMPABLE, 0);
        ready();
        result = read(0, buffer, 1);
    } else if (strcmp(mode, "full") == 0) {
        while (dup(0) >= 0)
            ;
        ready();
        result = read(0, buffer, 1);
    }
    int error = result < 0 ? errno : 0;
    printf("%ld %d %.3f %d %s\n", result, error, now() - begin, (int)handled, buffer);
    return 0;
}
"""


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("targets")
    folder.chmod(0o755)
    for parent in (folder.parent, folder.parent.parent):  # the tests run it as another user too
        parent.chmod(parent.stat().st_mode | 0o055)
    source, binary = folder / "target.c", folder / "target"
    source.write_text(PROGRAM)
    subprocess.run(["gcc", "-O1", "-Wall", "-o", binary, source, "-pthread"], check=True, timeout=60)
    return binary


class Target:
    """A running program of the list above, and what it says at its end."""

    def __init__(self, command: list[str | Path], readies: int = 1) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = self.process.pid
        assert self.process.stdout
        self.said: list[str] = []
        while readies:
            line = self.process.stdout.readline().decode().strip()
            assert line, f"{command} has ended"
            self.said.append(line)
            readies -= line == "ready"

    def finish(self, data: bytes = b"") -> tuple[int, int, float, int, str]:
        """Give it its input; return result, errno, seconds, signals handled, and the bytes it has read."""
        output, _ = self.process.communicate(data, timeout=HANG)
        assert self.process.returncode == 0
        result, error, seconds, handled, *rest = output.decode().split()
        return int(result), int(error), float(seconds), int(handled), "".join(rest)


@pytest.fixture
def start(program: Path) -> Iterator[Start]:
    targets = []

    def started(*words: str, prefix: tuple[str, ...] = (), readies: int = 1, wait: str = "S") -> Target:
        target = Target([*prefix, program, *words], readies)
        targets.append(target)
        if wait:
            until(lambda: procfs.status(procfs.threads(target.pid)[-1]).state == wait)
        return target

    yield started
    for target in targets:
        target.process.kill()
        target.process.communicate()


Start = Callable[..., Target]
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.001)


def descriptors(pid: int) -> dict[str, str]:
    found = {}
    for link in list(Path(f"/proc/{pid}/fd").iterdir()):
        with suppress(FileNotFoundError):  # the descriptor of this very folder
            found[link.name] = str(link.readlink())
    return found


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    before = descriptors(os.getpid())
    yield
    # The target's pipes are closed by the fixture that made them, later than this.
    now = {number: link for number, link in descriptors(os.getpid()).items() if not link.startswith("pipe:")}
    assert now == {number: link for number, link in before.items() if not link.startswith("pipe:")}


def children(pid: int) -> list[str]:
    return [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def userfaultfds(pid: int) -> list[str]:
    return [number for number, link in descriptors(pid).items() if "userfaultfd" in link]


def acquire_and_close(pid: int, features: int = 0) -> float:
    before = descriptors(pid) if Path(f"/proc/{pid}/fd/0").exists() else None
    family, mapped = children(pid), procfs.mappings(pid)
    acquired = acquire(pid, features=features)
    acquired.close()
    if before is not None:
        assert descriptors(pid) == before
    assert (children(pid), procfs.mappings(pid)) == (family, mapped)
    assert procfs.status(pid).tracer == 0
    return acquired.stopped


# ---- What a target is doing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["nanosleep", "poll", "ppoll", "select", "futex"])
def test_a_timed_wait_lasts_as_long_as_it_was_asked_to(start: Start, mode: str) -> None:
    target = start(mode, "2.5")
    began, waited = time.monotonic(), 0.0  # of the wait at least
    while waited < 1.2:
        waited = time.monotonic() - began
        acquire_and_close(target.pid)
    result, error, seconds, handled, _ = target.finish()
    assert (result, error) == ((-1, 110) if mode == "futex" else (0, 0))  # ETIMEDOUT
    assert 2.49 <= seconds < 2.5 + waited  # that and more if the wait began anew
    assert handled == 0


@pytest.mark.parametrize("mode", ["read", "epoll", "io_uring", "semop", "waitpid"])
def test_an_endless_wait_ends_with_its_event_once(start: Start, mode: str) -> None:
    target = start(mode)
    for _ in range(3):
        acquire_and_close(target.pid)
    result, error, _, handled, data = target.finish(b"x")
    expected = {"read": (1, "x"), "epoll": (1, ""), "io_uring": (0, ""), "semop": (0, ""), "waitpid": (1, "")}[mode]
    assert (result, error, handled, data) == (expected[0], 0, 0, expected[1])


def test_epoll_with_a_limit_ends_with_eintr_as_after_any_stop(start: Start) -> None:
    target = start("epoll", str(2 * HANG))
    acquire(target.pid).close()
    assert target.finish()[:2] == (-1, 4)


@pytest.mark.parametrize("mode", ["pause", "sigsuspend"])
def test_a_wait_for_a_signal_ends_with_the_signal_only(start: Start, mode: str) -> None:
    target = start(mode)
    for _ in range(3):
        acquire_and_close(target.pid)
    os.kill(target.pid, signal.SIGUSR1)
    assert target.finish()[:2] == (-1, 4)


def test_sigwaitinfo_ends_with_the_signal_only(start: Start) -> None:
    target = start("sigwaitinfo")
    for _ in range(3):
        acquire_and_close(target.pid)
    os.kill(target.pid, signal.SIGUSR1)
    result, error, _, handled, _ = target.finish()
    assert (result, error, handled) == (signal.SIGUSR1, 0, 0)


def test_a_computation_is_not_disturbed(start: Start) -> None:
    expected = start("compute").finish(b"x")[0]
    target = start("compute")
    until(lambda: procfs.status(target.pid).state == "R")
    for _ in range(5):
        acquire_and_close(target.pid)
    assert target.finish(b"x")[0] == expected != 0


def test_the_other_threads_run_on(start: Start) -> None:
    expected = start("threads", wait="").finish(b"x")[0]
    target = start("threads", wait="")
    until(lambda: len(procfs.threads(target.pid)) == 4)
    for _ in range(5):
        acquire_and_close(target.pid)
    assert target.finish(b"x")[0] == expected != 0


def test_another_thread_stands_in_for_a_main_thread_that_has_ended(start: Start) -> None:
    target = start("leaderless")
    until(lambda: procfs.status(target.pid).state == "Z")
    thread = check(target.pid)
    assert thread != target.pid
    for _ in range(3):
        acquire(target.pid).close()
    output, _ = target.process.communicate(b"y", timeout=HANG)
    assert output == b"y 0 0 0\n"


def test_the_memory_of_a_program_whose_main_thread_has_ended(start: Start) -> None:
    target = start("leaderless")
    until(lambda: procfs.status(target.pid).state == "Z")
    placement = nt.where(target.pid)
    assert placement.pid == target.pid
    assert nt.move(target.pid, 0).by_node == placement.by_node != {}
    with nt.attach(target.pid, 0, always=True) as migration:
        assert migration.wait(10)
    assert migration.stats.moved > 0
    output, _ = target.process.communicate(b"y", timeout=10)
    assert output == b"y 0 0 0\n"


def test_a_python_program_with_threads_is_not_disturbed() -> None:
    code = (
        "import sys, threading\n"
        "done, sums = threading.Event(), []\n"
        "def work():\n"
        "    while not done.is_set(): sums.append(sum(i * i for i in range(100_000)))\n"
        "threads = [threading.Thread(target=work) for _ in range(3)]\n"
        "[thread.start() for thread in threads]\n"
        "print('ready', flush=True); sys.stdin.read(1); done.set()\n"
        "[thread.join() for thread in threads]\n"
        "print(len(threads), *set(sums))\n"
    )
    target = Target([sys.executable, "-c", code])
    for _ in range(3):
        acquire_and_close(target.pid)
    output, _ = target.process.communicate(b"x", timeout=HANG)
    assert output.split() == [b"3", str(sum(i * i for i in range(100_000))).encode()]


@pytest.mark.skipif(MACHINE != "x86_64", reason="the target's assembly is x86-64's")
def test_a_restartable_sequence_is_aborted(start: Start) -> None:
    target = start("restartable", wait="R")
    flag, aborts = (int(word, 16) for word in target.said[0].split())
    with Path(f"/proc/{target.pid}/mem").open("r+b", buffering=0) as memory:

        def count() -> int:
            memory.seek(aborts)
            return int.from_bytes(memory.read(8), "little")

        for _ in range(5):
            before = count()
            acquire_and_close(target.pid)
            ran = processor_time(target.pid)
            while count() <= before:  # it is aborted before it runs on, not when another program has its turn
                assert processor_time(target.pid) < ran + 0.5
        memory.seek(flag)
        memory.write((1).to_bytes(8, "little"))
    assert target.finish()[:2] == (0, 0)


def processor_time(pid: int) -> float:
    """Seconds for which a program has run."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- Forks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [(), AS_NOBODY], ids=["root", "nobody"])
def test_a_child_forked_meanwhile_has_what_the_program_has(
    start: Start, prefix: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread forks while the descriptor is open and not closed again."""
    target = start("forker", prefix=prefix)
    before, forked = descriptors(target.pid), []

    def taken(pidfd: int, number: int, *, pid: int) -> int:
        assert target.process.stdin
        assert target.process.stdout
        copy = pidfd_getfd(pidfd, number, pid=pid)
        target.process.stdin.write(b"f")
        target.process.stdin.flush()
        forked.append(int(target.process.stdout.readline()))
        return copy

    monkeypatch.setattr(injection, "pidfd_getfd", taken)
    pidfd = pidfd_open(target.pid)
    try:
        instruction = descriptor._system_call_instruction(target.pid)
        uffd, _ = injection.take_userfaultfd(target.pid, target.pid, instruction, pidfd)
        assert userfaultfds(os.getpid()) == [str(uffd)]
        os.close(uffd)
    finally:
        os.close(pidfd)
    assert children(target.pid) == list(map(str, forked)) != []
    inherited = [descriptors(child) for child in forked]
    for child in forked:
        os.kill(child, signal.SIGKILL)
    assert inherited == [before] * len(forked)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("fork", [os.fork, ctypes.CDLL(None).fork], ids=["Python's", "the C library's"])
def test_a_child_of_the_migrator_has_no_descriptor_that_is_on_its_way(start: Start, fork: Callable[[], int]) -> None:
    target = start("read")
    with closing(acquire(target.pid)) as acquired:
        assert userfaultfds(os.getpid()) == [str(acquired.uffd)]
        assert exit_status(fork, lambda: not userfaultfds(os.getpid())) == 0
    with Path("/dev/null").open("rb") as other:  # the next one with the number
        assert other.fileno() == min(acquired.uffd, acquired.pidfd)
        numbers = [other.fileno(), os.dup2(other.fileno(), max(acquired.uffd, acquired.pidfd))]
        assert exit_status(fork, lambda: all(os.fstat(number) for number in numbers)) == 0
        os.close(numbers[1])
    assert target.finish(b"x")[:2] == (1, 0)


def exit_status(fork: Callable[[], int], holds: Callable[[], bool]) -> int:
    child = fork()
    if not child:
        with suppress(BaseException):
            os._exit(0 if holds() else 1)
        os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# ---- Signals ------------------------------------------------------------------------------------------------------


def test_pending_signals_stay_pending(start: Start) -> None:
    target = start("pending")
    os.kill(target.pid, signal.SIGUSR1)
    for _ in range(3):
        os.kill(target.pid, signal.SIGRTMIN)
    acquire_and_close(target.pid)
    assert target.finish(b"x")[3] == 4


def test_no_signal_is_lost_or_doubled(start: Start) -> None:
    target = start("count")
    sent = 0
    for _ in range(4):
        before = descriptors(target.pid)
        with subprocess.Popen([sys.executable, "-c", _ACQUIRE.format(target.pid)], stdout=subprocess.PIPE) as attacher:
            while attacher.poll() is None:
                os.kill(target.pid, signal.SIGRTMIN)
                sent += 1
                time.sleep(0.0001)
        assert attacher.returncode == 0
        assert descriptors(target.pid) == before
    result, error, _, handled, data = target.finish(b"x")
    assert (result, error, data) == (1, 0, "x")
    assert handled == sent


_ACQUIRE = "from nexttouch.live.descriptor import acquire; acquire({})"


def test_a_stopped_target_stays_stopped(start: Start) -> None:
    target = start("read")
    os.kill(target.pid, signal.SIGSTOP)
    until(lambda: procfs.status(target.pid).state == "T")
    for _ in range(3):
        acquire_and_close(target.pid)
        until(lambda: procfs.status(target.pid).state == "T")
    os.kill(target.pid, signal.SIGCONT)
    until(lambda: procfs.status(target.pid).state == "S")
    acquire_and_close(target.pid)
    assert target.finish(b"x")[:2] == (1, 0)


def test_stops_and_continues_in_between_have_their_effect(start: Start) -> None:
    target = start("read")
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", _ACQUIRE.format(target.pid)]) as attacher:
            while attacher.poll() is None:
                os.kill(target.pid, signal.SIGSTOP)
                os.kill(target.pid, signal.SIGCONT)
                time.sleep(0.0002)
        assert attacher.returncode == 0
        os.kill(target.pid, signal.SIGSTOP)
        until(lambda: procfs.status(target.pid).state == "T")
        os.kill(target.pid, signal.SIGCONT)
        until(lambda: procfs.status(target.pid).state == "S")
    assert target.finish(b"x")[:2] == (1, 0)


# ---- What is acquired ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [(), AS_NOBODY], ids=["root", "nobody"])
def test_stores_of_system_calls_are_caught_and_closing_undoes_all(start: Start, prefix: tuple[str, ...]) -> None:
    target = start("page", prefix=prefix)
    address = int(target.said[0], 16)
    acquired = acquire(target.pid, features=Feature.PAGEFAULT_FLAG_WP | Feature.THREAD_ID)
    assert target.process.stdin
    with closing(acquired):
        memory = Userfaultfd(acquired.uffd)
        memory.register(address, 65536, Mode.WP)
        memory.write_protect(address, 65536)
        target.process.stdin.write(b"xz")  # read(2) of the second byte goes into the protected page
        target.process.stdin.flush()
        events: list[Event] = []
        while not events:
            events = memory.read_events()
        assert events == [Fault(FaultFlag.WRITE | FaultFlag.WP, address, target.pid)]
    # The protection went with the last close.
    result, error, _, _, data = target.finish()
    assert (result, error, data) == (1, 0, "za")


def test_a_program_without_a_free_descriptor_needs_none(start: Start) -> None:
    target = start("full", readies=2, prefix=("prlimit", "--nofile=32"))
    acquire_and_close(target.pid)
    assert target.finish(b"x")[:2] == (1, 0)


def test_features_that_are_only_wanted_are_done_without(start: Start) -> None:
    target = start("page")
    with closing(acquire(target.pid, features=Feature.PAGEFAULT_FLAG_WP, wanted=1 << 30)) as acquired:
        memory = Userfaultfd(acquired.uffd)
        memory.register(int(target.said[0], 16), 65536, Mode.WP)
    assert target.finish(b"xy")[:2] == (1, 0)


def test_the_time_the_target_stands_still_is_short_and_does_not_grow(start: Start) -> None:
    """Of as many times as it takes the shortest: what else runs on the machine only ever lengthens one."""
    small, large = (start("memory", mebibytes, readies=2) for mebibytes in ("64", "1024"))
    shortest = [math.inf, math.inf]

    def short() -> bool:
        for number, target in enumerate((small, large)):
            shortest[number] = min(shortest[number], acquire_and_close(target.pid))
        return max(shortest) < 0.005 and shortest[1] < 2 * shortest[0] + 0.0005

    until(short)


def test_a_feature_that_the_kernel_lacks_is_named(start: Start) -> None:
    target = start("read")
    before = descriptors(target.pid)
    with pytest.raises(FeatureMissing, match="userfaultfd 0x40000000 is not available"):
        acquire(target.pid, features=1 << 30)
    assert descriptors(target.pid) == before
    assert target.finish(b"x")[:2] == (1, 0)


# ---- Deaths -------------------------------------------------------------------------------------------------------


def test_the_migrator_may_be_killed_at_any_moment(start: Start) -> None:
    target = start("read")
    before = descriptors(target.pid)
    for step in range(25):
        migrator = subprocess.Popen([sys.executable, "-c", _ACQUIRE.format(target.pid)])
        time.sleep(0.09 + step * 0.004)  # moments over the whole life of the helper
        migrator.kill()
        migrator.wait()
        until(lambda: not _helpers_of(target.pid))
        assert procfs.status(target.pid).tracer == 0
        assert descriptors(target.pid) == before
    assert target.finish(b"x")[:2] == (1, 0)


def _helpers_of(pid: int) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"-I" in words and str(pid).encode() in words:
            found.append(process.parent.name)
    return found


def test_the_helper_ignores_signals(start: Start) -> None:
    target = start("read")
    sent = 0
    for _ in range(20):
        migrator = subprocess.Popen([sys.executable, "-c", _ACQUIRE.format(target.pid)])
        while migrator.poll() is None:
            for helper in _helpers_of(target.pid):
                sent += _send_all(int(helper))
        assert migrator.returncode == 0
        if sent:
            break
    assert sent
    assert target.finish(b"x")[:2] == (1, 0)


def _send_all(helper: int) -> int:
    # Before it is shielded it is an interpreter that starts, and has not touched anything.
    if "SigBlk:\tfffffffe7ffbfeff" not in _status_lines(helper):
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        with suppress(ProcessLookupError):
            os.kill(helper, number)
    return 1


def _status_lines(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return []


def test_a_target_that_is_gone_is_said_to_be(start: Start) -> None:
    target = start("read")
    pidfd = pidfd_open(target.pid)
    target.process.kill()
    target.process.wait()
    try:
        with pytest.raises(NoSuchProcess):
            acquire(target.pid)
        with pytest.raises(NoSuchProcess):
            injection.take_userfaultfd(target.pid, target.pid, 0, pidfd)
    finally:
        os.close(pidfd)


def test_a_process_that_got_the_number_of_another_is_left_alone(start: Start) -> None:
    gone, other = start("read"), start("read")
    pidfd = pidfd_open(gone.pid)
    gone.process.kill()
    gone.process.wait()
    try:
        with pytest.raises(NoSuchProcess):
            injection.take_userfaultfd(other.pid, other.pid, 0, pidfd)
    finally:
        os.close(pidfd)
    _release(other.pid)
    assert other.finish(b"x")[:2] == (1, 0)


def _release(pid: int) -> None:
    # Only for tests that seize from this process, which does not end: let go what was seized but not stopped.
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.ptrace(0x4207, pid, None, None) == 0
    os.waitpid(pid, 0x40000000)
    assert libc.ptrace(17, pid, None, None) == 0


def test_a_target_killed_while_it_is_stopped(start: Start) -> None:
    target = start("read")
    thread = StoppedThread(target.pid, target.pid, descriptor._system_call_instruction(target.pid))
    thread.seize()
    thread.stop(HANG)
    target.process.kill()
    os.waitid(os.P_PID, target.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(NoSuchProcess, match="while it was attached"):
        thread.call(NUMBERS[MACHINE]["close"], 1000)


# ---- Refusals -----------------------------------------------------------------------------------------------------


def refused(pid: int, match: str) -> None:
    before = descriptors(pid) if Path(f"/proc/{pid}/fd/0").exists() else None
    with pytest.raises(TargetRefused, match=match) as error:
        acquire(pid)
    assert error.value.pid == pid
    if before is not None and pid != os.getpid():
        assert descriptors(pid) == before


def test_this_process() -> None:
    refused(os.getpid(), "it is this process; use nexttouch.lazy")


def test_a_zombie(program: Path) -> None:
    child = subprocess.Popen(["true"])
    try:
        until(lambda: procfs.status(child.pid).state == "Z")
        refused(child.pid, "zombie")
    finally:
        child.wait()


@pytest.mark.skipif(not Path("/proc/2").exists(), reason="kernel threads are not visible here")
def test_a_kernel_thread() -> None:
    refused(2, "kernel thread")


def test_a_traced_process(start: Start) -> None:
    target = start("read")
    StoppedThread(target.pid, target.pid, 0).seize()
    refused(target.pid, f"process {os.getpid()} traces it")
    _release(target.pid)
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_process_with_a_seccomp_filter(start: Start) -> None:
    target = start("seccomp", readies=2)
    refused(target.pid, "seccomp")
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_seccomp_filter_that_came_after_the_check(start: Start) -> None:
    target = start("seccomp", readies=2)
    instruction = descriptor._system_call_instruction(target.pid)
    pidfd = pidfd_open(target.pid)
    try:
        with pytest.raises(TargetRefused, match="seccomp"):
            injection.take_userfaultfd(target.pid, target.pid, instruction, pidfd)
    finally:
        os.close(pidfd)
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_program_that_dispatches_its_own_system_calls(start: Start) -> None:
    target = start("dispatch", readies=2)
    refused(target.pid, "PR_SET_SYSCALL_USER_DISPATCH")
    assert target.finish(b"x")[:2] == (1, 0)


def test_an_address_that_is_no_system_call_instruction(start: Start) -> None:
    target = start("read")
    address = procfs.mappings(target.pid)[0].start
    pidfd = pidfd_open(target.pid)
    try:
        with pytest.raises(TargetRefused, match="replaced its program"):
            injection.take_userfaultfd(target.pid, target.pid, address, pidfd)
    finally:
        os.close(pidfd)
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_program_with_its_own_userfaultfd() -> None:
    code = (
        "import sys; from nexttouch.linux.userfaultfd import Userfaultfd\n"
        "u = Userfaultfd.open(); print('ready', flush=True); sys.stdin.read(1)"
    )
    target = Target([sys.executable, "-c", code])
    refused(target.pid, "it handles its own page faults")
    target.process.communicate(b"x")


def test_a_program_whose_faults_another_process_handles(start: Start) -> None:
    target = start("page")
    acquired = acquire(target.pid)
    with closing(acquired):
        memory = Userfaultfd(acquired.uffd)
        memory.register(int(target.said[0], 16), 65536, Mode.MISSING)
        refused(target.pid, "another process .* handles its page faults")
    acquire_and_close(target.pid)
    assert target.finish(b"xy")[:2] == (1, 0)


def test_a_32_bit_program(tmp_path: Path) -> None:
    source, binary = tmp_path / "t.c", tmp_path / "t"
    source.write_text(
        'void _start(void) { for (;;) __asm__ volatile("int $0x80" : : "a"(29)); }\n'  # pause
    )
    compiled = subprocess.run(
        ["gcc", "-m32", "-nostdlib", "-static", "-o", binary, source], capture_output=True, check=False
    )
    if compiled.returncode:
        pytest.skip("the compiler makes no 32-bit programs")
    try:
        process = subprocess.Popen([binary])
    except OSError:
        pytest.skip("the kernel runs no 32-bit programs")
    try:
        until(lambda: procfs.status(process.pid).state == "S")
        refused(process.pid, "32-bit")
        # The same, had the look at the file missed it: nothing but the registers tells then.
        pidfd = pidfd_open(process.pid)
        with pytest.raises(TargetRefused, match="32-bit"):
            injection.take_userfaultfd(process.pid, process.pid, 0, pidfd)
        os.close(pidfd)
        until(lambda: procfs.status(process.pid).state == "S")
    finally:
        process.kill()
        process.wait()


def test_a_program_that_may_have_no_descriptor(start: Start) -> None:
    target = start("read")
    resource.prlimit(target.pid, resource.RLIMIT_NOFILE, (0, 0))
    refused(target.pid, "no file descriptor left")
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_program_that_may_have_no_more_processes(start: Start) -> None:
    target = start("alone", prefix=AS_NOBODY, readies=2)
    refused(target.pid, "no more processes")
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_program_whose_next_child_begins_a_namespace(start: Start) -> None:
    target = start("unshare", readies=2)
    refused(target.pid, "next child begins a pid namespace")
    assert target.finish(b"x")[:2] == (1, 0)


def test_numbers_that_are_no_process(start: Start) -> None:
    with pytest.raises(InvalidArgument, match="positive"):
        acquire(0)
    with pytest.raises(InvalidArgument, match="positive"):
        acquire(-1)
    with pytest.raises(NoSuchProcess):
        acquire(2**22 + 1)
    target = start("threads", wait="")
    until(lambda: len(procfs.threads(target.pid)) > 1)
    with pytest.raises(InvalidArgument, match="thread"):
        acquire(procfs.threads(target.pid)[1])


ATTEMPT = """
import json, sys
from nexttouch.errors import NexttouchError
from nexttouch.live.descriptor import acquire
try:
    acquire(int(sys.argv[1]))
    print(json.dumps(["", ""]))
except NexttouchError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def attempt_as_nobody(pid: int) -> tuple[str, str]:
    interpreter = next((path for path in (sys.executable, "/usr/bin/python3") if usable_by_nobody(path)), None)
    if not interpreter:
        pytest.skip("there is no Python interpreter that another user can run")
    command = [*AS_NOBODY, interpreter, "-c", ATTEMPT, str(pid)]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # the package with its core, where that user can read it
        Path(folder).chmod(0o755)
        package = shutil.copytree(Path(descriptor.__file__).parents[1], Path(folder) / "nexttouch")
        shutil.copy(_core.__file__, package)
        environment = {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, capture_output=True, check=True, timeout=HANG, cwd="/", env=environment)
    name, message = json.loads(done.stdout)
    return name, message


def usable_by_nobody(path: str) -> bool:
    # By a shell, because setpriv itself still has root's privileges when it looks for the program.
    command = [*AS_NOBODY, "sh", "-c", '"$0" -c "import sys; sys.exit(sys.version_info < (3, 11))"', path]
    return subprocess.run(command, capture_output=True, check=False, cwd="/").returncode == 0


def test_another_users_process(start: Start) -> None:
    target = start("read")
    assert attempt_as_nobody(target.pid) == (
        "NotPermitted",
        f"process {target.pid} may not be touched: it belongs to user 0; run as root or with CAP_SYS_PTRACE",
    )
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_process_of_more_capabilities(start: Start) -> None:
    target = start("read")
    command = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", sys.executable, "-c", ATTEMPT]
    done = subprocess.run([*command, str(target.pid)], capture_output=True, check=True, timeout=HANG)
    name, message = json.loads(done.stdout)
    assert name == "NotPermitted"
    assert "run as root or with CAP_SYS_PTRACE" in message
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_migrator_without_a_free_descriptor(start: Start) -> None:
    target, messages = start("read"), []
    for limit in range(4, 16):
        limited = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))\n"
        code = ATTEMPT.replace("try:", limited + "try:")
        done = subprocess.run(
            [sys.executable, "-c", code, str(target.pid)], capture_output=True, check=True, timeout=HANG
        )
        messages.append(json.loads(done.stdout)[1])
    for call in ("socketpair", "execve"):
        remedy = "this process has no file descriptor left; raise its limit (ulimit -n)"
        assert f"{call}: Too many open files (EMFILE); {remedy}" in messages
    assert messages[-1] == ""
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_process_protected_from_its_own_user(start: Start) -> None:
    target = start("undumpable", prefix=AS_NOBODY, readies=2)
    name, message = attempt_as_nobody(target.pid)
    assert name == "NotPermitted"
    assert "protected from its own user" in message
    assert target.finish(b"x")[:2] == (1, 0)


@pytest.mark.skipif(
    Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0", reason="any user may have a userfaultfd"
)
def test_a_user_who_may_not_have_a_userfaultfd(start: Start) -> None:
    target = start("read", prefix=AS_NOBODY)
    name, message = attempt_as_nobody(target.pid)
    assert name == "NotPermitted"
    assert "vm.unprivileged_userfaultfd=1" in message or "ptrace_scope" in message
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_helper_that_dies_is_reported() -> None:
    with pytest.raises(KernelError, match="ended with status -9 before it was done"):
        descriptor._read_answer(b"", -1, 1, -9)


def test_a_descriptor_that_could_not_be_received_is_reported() -> None:
    with pytest.raises(KernelError, match="raise its limit"):
        descriptor._read_answer(b'{"stopped": 0.1}', -1, 1, 0)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("FeatureMissing", ["x", "reason", "remedy"]),
        ("KernelError", ["mmap", 12]),
        ("NotPermitted", [7, "reason"]),
        ("TargetRefused", [7, "reason"]),
    ],
)
def test_errors_travel(name: str, arguments: list[Any]) -> None:
    answer = json.dumps({"error": name, "arguments": arguments}).encode()
    with pytest.raises(Exception, match=r".") as error:
        descriptor._read_answer(answer, -1, 7, 0)
    assert type(error.value).__name__ == name
    assert [getattr(error.value, field) for field in injection.ERROR_ARGUMENTS[name]] == arguments


def test_the_end_of_the_target_is_reported() -> None:
    with pytest.raises(NoSuchProcess, match="process 7 ended while it was attached to"):
        descriptor._read_answer(b'{"error": "NoSuchProcess", "arguments": [7]}', -1, 7, 0)
