"""ptrace(2), as far as a thread of another process has to be stopped, made to run system calls, and let go.

`StoppedThread` runs system calls in a thread that knows nothing of it. What makes that invisible to the thread:

* The stop is PTRACE_INTERRUPT's: the kernel takes it inside its signal handling, on the way back to user mode. A
  thread that was blocked in a system call has left it with -ERESTARTSYS or a relative in its result register, and the
  kernel decides about the restart only **after** the stop, from the registers as they are then. So the injected
  registers say "in no system call" (orig_rax = -1), and the registers restored at the end say what the first stop
  said: the kernel then restarts the call, with its remaining time if it has one (restart_syscall(2)). Calls in
  between do not disturb this: what is left of a sleep is kept until a call of the same kind is interrupted.
* PTRACE_DETACH of a stopped thread sends it through signal handling once more (ptrace_signal_wake_up in
  __ptrace_unlink, kernel/ptrace.c); therefore the restored registers meet the restart logic though the last stop was
  not taken there.
* Signals stay blocked while injected registers are loaded, or a handler would start from them. They stay pending and
  are delivered afterwards. SIGSTOP cannot be blocked: it is passed on and leads to a group stop, from which a seized
  thread may be resumed. The kernel remembers the group stop and puts the thread back into it at the detach.
* What must not be in the program's table of descriptors even for a moment, because a fork in another thread would copy
  it, can be opened by a clone of the thread that shares its memory only. Such a clone sends no signal at its end, and
  is no child that wait(2) without __WALL or __WCLONE would find.
* A thread inside a restartable sequence (rseq(2)) continues at the sequence's abort address, as after any other
  preemption: the kernel itself would not notice, because it looks at the injected instruction pointer.
* epoll_wait(2), sigwaitinfo(2), semop(2), io_getevents(2), io_uring_enter(2) and waits for a socket that has a time
  limit (SO_RCVTIMEO) fail with EINTR after any stop (signal(7)); poll(2), select(2), nanosleep(2), futex(2), read(2)
  and the others do not, but a write(2) to a pipe or a socket that has written a part says so, as after any stop. On
  x86-64 a call of the first kind that waits without a time limit is restarted nevertheless (see
  `Architecture.resumed`); with a limit it fails with EINTR, as after SIGSTOP and SIGCONT, because the kernel
  does not tell how much of the time is left.

Tested on x86-64. The arm64 functions on register bytes are tested, but nothing of this has run on arm64 hardware; one
thing is known to differ there: the kernel rewinds the registers before the stop and keeps what kind of restart it is
to itself, so an interrupted nanosleep(2) or futex(2) with a relative time starts anew.

All requests for a thread have to come from the thread that seized it. If the tracer dies, the kernel lets the thread
go on with the registers it has at that moment.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from pathlib import Path
from typing import ClassVar

from ..errors import KernelError, NoSuchProcess, NotPermitted, TargetRefused
from .capabilities import SYS_PTRACE, capable
from .syscall import MACHINE

__all__ = ["ARCHITECTURES", "Architecture", "StoppedThread", "restriction"]

_WORD = (1 << 64) - 1
_RESTART = 513  # ERESTARTNOINTR: restart in any case
_RESTART_UNLESS_HANDLED = -514 & _WORD  # ERESTARTNOHAND: restart, but EINTR if a signal handler runs


class Architecture:
    """One kind of processor: pure functions on its registers, as the bytes of NT_PRSTATUS."""

    def __init__(
        self, words: int, instruction: bytes, alignment: int, arguments: tuple[int, ...], places: tuple[int, int, int]
    ) -> None:
        self.size = words * 8
        """Bytes of the registers of a 64-bit thread; those of a 32-bit one are fewer."""
        self.instruction = instruction
        """The instruction that makes a system call."""
        self.alignment = alignment
        """Addresses of instructions are multiples of this."""
        self._layout = struct.Struct(f"<{words}Q")
        self._arguments = arguments
        self._number, self._result, self._counter = places

    def prepare(self, registers: bytes, address: int, number: int, arguments: tuple[int, ...]) -> bytes:
        """Return registers that make system call `number` by the instruction at `address`, up to six arguments."""
        words = list(self._layout.unpack(registers))
        for register, value in zip(self._arguments, arguments, strict=False):
            words[register] = value & _WORD
        words[self._number], words[self._counter] = number, address
        self._make_clean(words)
        return self._layout.pack(*words)

    def result(self, registers: bytes) -> int:
        """Return what a finished system call returned; negative is an errno."""
        word = int(self._layout.unpack(registers)[self._result])
        return word - (1 << 64) if word >> 63 else word

    def program_counter(self, registers: bytes) -> int:
        """Return the address of the next instruction."""
        return int(self._layout.unpack(registers)[self._counter])

    def at(self, registers: bytes, address: int) -> bytes:
        """Return the registers with the program counter set to `address`."""
        words = list(self._layout.unpack(registers))
        words[self._counter] = address
        return self._layout.pack(*words)

    def resumed(self, registers: bytes) -> bytes:
        """Return the registers with which an interrupted thread goes on as if it had not been interrupted."""
        return registers

    def _make_clean(self, words: list[int]) -> None:
        """Take out of injected registers what belongs to the moment of the stop."""
        raise NotImplementedError


class _X8664(Architecture):
    # struct user_regs_struct, arch/x86/include/asm/user_64.h.
    _R10, _R9, _R8, _RAX, _RDX, _RSI, _RDI, _ORIG_RAX, _RIP = 7, 8, 9, 10, 12, 13, 14, 15, 16
    # Calls that fail with EINTR after any stop: number -> the register with the limit of their wait, None if they have
    # no limit. epoll_wait and epoll_pwait take an int, negative for no limit; io_uring_enter flags, one of which says
    # that there may be a limit; the others a pointer, NULL for no limit.
    _EPOLL: ClassVar = {232, 281}
    _IO_URING_ENTER, _EXTENDED_ARGUMENT = 426, 1 << 3
    _INTERRUPTED: ClassVar = {
        232: _R10,  # epoll_wait
        281: _R10,  # epoll_pwait
        441: _R10,  # epoll_pwait2
        128: _RDX,  # rt_sigtimedwait
        208: _R8,  # io_getevents
        220: _R10,  # semtimedop
        65: None,  # semop
        426: _R10,  # io_uring_enter; only where it has submitted nothing
    }

    def __init__(self) -> None:
        arguments = (self._RDI, self._RSI, self._RDX, self._R10, self._R8, self._R9)
        super().__init__(27, b"\x0f\x05", 1, arguments, (self._RAX, self._RAX, self._RIP))

    def resumed(self, registers: bytes) -> bytes:
        """Turn the EINTR of a wait without limit into a restart, which yields to a signal's handler."""
        words = list(self._layout.unpack(registers))
        call = words[self._ORIG_RAX]
        if words[self._RAX] != -errno.EINTR & _WORD or call not in self._INTERRUPTED or self._limited(call, words):
            return registers
        words[self._RAX] = _RESTART_UNLESS_HANDLED
        return self._layout.pack(*words)

    def _limited(self, call: int, words: list[int]) -> bool:
        register = self._INTERRUPTED[call]
        if register is None:
            return False
        if call == self._IO_URING_ENTER:
            return bool(words[register] & self._EXTENDED_ARGUMENT)
        return not words[register] & 1 << 31 if call in self._EPOLL else words[register] != 0

    def _make_clean(self, words: list[int]) -> None:
        words[self._ORIG_RAX] = _WORD  # in no system call, so none is restarted


class _Arm64(Architecture):
    # struct user_pt_regs, arch/arm64/include/uapi/asm/ptrace.h: x0 to x30, sp, pc, pstate.
    _PSTATE = 33
    _BRANCH_TYPE = 3 << 10  # says that a landing pad has to follow, which the injected address is not

    def __init__(self) -> None:
        super().__init__(34, b"\x01\x00\x00\xd4", 4, (0, 1, 2, 3, 4, 5), (8, 0, 32))

    def _make_clean(self, words: list[int]) -> None:
        words[self._PSTATE] &= ~self._BRANCH_TYPE


ARCHITECTURES: dict[str, Architecture] = {"x86_64": _X8664(), "aarch64": _Arm64()}
"""The processors on which threads can be made to run system calls, by machine name as `uname -m` prints it."""

# Requests and constants: include/uapi/linux/ptrace.h.
_PEEKTEXT, _CONT, _DETACH, _SYSCALL = 1, 7, 17, 24
_SETOPTIONS, _GETEVENTMSG = 0x4200, 0x4201
_GETREGSET, _SETREGSET, _SEIZE, _INTERRUPT = 0x4204, 0x4205, 0x4206, 0x4207
_GETSIGMASK, _SETSIGMASK = 0x420A, 0x420B
_GET_RSEQ_CONFIGURATION, _GET_SYSCALL_USER_DISPATCH_CONFIG = 0x420F, 0x4211
_O_TRACESYSGOOD, _O_TRACECLONE, _O_EXITKILL = 1, 1 << 3, 1 << 20
_EVENT_CLONE, _EVENT_STOP = 3, 128
_SIGTRAP, _SIGKILL = 5, 9
_SYSTEM_CALL_STOP = _SIGTRAP | 0x80
_WALL = 0x40000000
_NT_PRSTATUS, _NT_ARM_SYSTEM_CALL = 1, 0x404


class _Vector(ctypes.Structure):  # struct iovec
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _RseqConfiguration(ctypes.Structure):
    _fields_ = (
        ("area", ctypes.c_uint64),
        ("size", ctypes.c_uint32),
        ("signature", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class _DispatchConfiguration(ctypes.Structure):
    _fields_ = (
        ("mode", ctypes.c_uint64),
        ("selector", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
    )


_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


class StoppedThread:
    """A thread of another process that stands still and can be made to run system calls.

    `release` has to be called, and lets it go on where it was. Every method but the first raises NoSuchProcess if
    the thread has ended meanwhile.

    Args:
        pid: the process, for messages.
        thread: id of the thread that has to stand still; the others run on.
        instruction: address, in that process, of an instruction that makes a system call.
    """

    def __init__(self, pid: int, thread: int, instruction: int) -> None:
        self._pid = pid
        self._thread = thread
        self._instruction = instruction
        self._architecture = ARCHITECTURES[MACHINE]
        self._registers = b""
        self._signals = ctypes.c_uint64()
        self._clone = ctypes.c_uint64()
        self._timeout = 0.0

    @property
    def thread(self) -> int:
        """Its id here; in a pid namespace it has another one for itself."""
        return self._thread

    def seize(self) -> None:
        """Become the thread's tracer, without stopping it.

        Raises:
            NotPermitted: the kernel refuses.
            NoSuchProcess: the thread does not exist.
        """
        self._request("PTRACE_SEIZE", _SEIZE, 0, _O_TRACESYSGOOD)

    def stop(self, timeout: float) -> None:
        """Stop the seized thread, wait for that, and make it ready for `call`.

        Raises:
            TargetRefused: it does not stop within `timeout` seconds, or stopped where system calls cannot be injected;
                then it goes on as it was, at the latest when this process ends.
        """
        self._timeout = timeout
        self._interrupt()
        try:
            self._check()
        except BaseException:
            self._request("PTRACE_DETACH", _DETACH)
            raise
        self._request("PTRACE_GETSIGMASK", _GETSIGMASK, 8, ctypes.addressof(self._signals))
        self._set_signals(ctypes.c_uint64(_WORD))

    def nudge(self, timeout: float) -> None:
        """Interrupt what the seized thread waits for, and let it go: a wait that is restarted looks again first.

        Raises:
            TargetRefused: it does not stop within `timeout` seconds.
        """
        self._timeout = timeout
        self._interrupt()
        self._request("PTRACE_DETACH", _DETACH)

    def call(self, number: int, *arguments: int) -> int:
        """Make the thread run system call `number`; return what it returned, a negative errno if it failed."""
        self._prepare(number, *arguments)
        self._run_to_system_call_stop()  # going in
        return self._finish_call()

    def clone(self, number: int, flags: int) -> tuple[StoppedThread, int]:
        """Make the thread clone itself by system call `number` (clone(2)); return the clone, and its id for the thread.

        The clone is traced and stopped, has no signal unblocked, sends none when it ends, and ends with this process
        at the latest. The caller ends it (`kill`), and has the thread wait for it (wait4(2) with __WALL).

        Raises:
            TargetRefused: the program may have no more processes, or is frozen: it stands still as it did.
            KernelError: any other failure.
        """
        self._request("PTRACE_SETOPTIONS", _SETOPTIONS, 0, _O_TRACESYSGOOD | _O_TRACECLONE | _O_EXITKILL)
        result = -_RESTART
        while result == -_RESTART:  # or SIGSTOP came, which cannot be blocked
            self._prepare(number, flags, 0, 0, 0, 0)
            self._go_in_unless_frozen()
            result = self._finish_call()
        self._request("PTRACE_SETOPTIONS", _SETOPTIONS, 0, _O_TRACESYSGOOD)
        if result == -errno.EAGAIN:
            raise TargetRefused(self._pid, "it may have no more processes; raise its limit (prlimit --nproc, pids.max)")
        if result < 0:
            raise KernelError("clone", -result, f"called in process {self._pid}")
        clone = StoppedThread(self._pid, self._clone.value, self._instruction)
        clone._registers = self._registers
        while clone._wait() >> 16 != _EVENT_STOP:
            clone._resume(_CONT, 0)
        return clone, result

    def kill(self) -> None:
        """End the process that it is the only thread of, and wait for that."""
        os.kill(self._thread, _SIGKILL)
        while os.WIFSTOPPED(os.waitpid(self._thread, _WALL)[1]):
            pass

    def release(self) -> None:
        """Restore registers and signals as they were at the stop, and let the thread go on."""
        self._set_registers(self._architecture.resumed(self._registers))
        if MACHINE == "aarch64":
            self._forget_system_call()
        self._set_signals(self._signals)
        self._request("PTRACE_DETACH", _DETACH)

    def _interrupt(self) -> None:
        self._request("PTRACE_INTERRUPT", _INTERRUPT)
        deadline = time.monotonic() + self._timeout
        while (stop := self._wait(deadline)) >> 16 != _EVENT_STOP:
            self._resume(_CONT, _signal_of(stop))

    def _check(self) -> None:
        self._registers = self._get_registers()
        if len(self._registers) != self._architecture.size:
            raise TargetRefused(self._pid, "it runs 32-bit code; only 64-bit programs can be attached to")
        # An exec since the address was looked up has replaced the address space.
        code = self._peek(self._instruction)
        if code is None or not code.startswith(self._architecture.instruction):
            raise TargetRefused(self._pid, "it has just replaced its program (execve); try again")
        if self._dispatches_system_calls():
            raise TargetRefused(
                self._pid,
                "it catches its own system calls (PR_SET_SYSCALL_USER_DISPATCH), as Wine does; move its pages eagerly",
            )
        self._leave_restartable_sequence()

    def _dispatches_system_calls(self) -> bool:
        # A kernel before 6.4 cannot tell; such a thread would get SIGSYS for the injected call.
        answer = _DispatchConfiguration()
        error = self._try(_GET_SYSCALL_USER_DISPATCH_CONFIG, ctypes.sizeof(answer), ctypes.addressof(answer))
        return not error and bool(answer.mode)

    def _leave_restartable_sequence(self) -> None:
        answer = _RseqConfiguration()
        if self._try(_GET_RSEQ_CONFIGURATION, ctypes.sizeof(answer), ctypes.addressof(answer)) or not answer.area:
            return
        sequence = self._word(answer.area + 8)  # struct rseq: rseq_cs
        if not sequence:
            return
        start, length, abort = (self._word(sequence + offset) for offset in (8, 16, 24))  # struct rseq_cs
        if start <= self._architecture.program_counter(self._registers) < start + length:
            self._registers = self._architecture.at(self._registers, abort)

    def _word(self, address: int) -> int:
        return int.from_bytes(self._peek(address) or bytes(8), "little")

    def _peek(self, address: int) -> bytes | None:
        ctypes.set_errno(0)
        word = _ptrace(_PEEKTEXT, self._thread, address, None)
        return None if ctypes.get_errno() else int(word & _WORD).to_bytes(8, "little")

    def _prepare(self, number: int, *arguments: int) -> None:
        self._set_registers(self._architecture.prepare(self._registers, self._instruction, number, arguments))

    def _finish_call(self) -> int:
        self._run_to_system_call_stop()  # coming out
        return self._architecture.result(self._get_registers())

    def _go_in_unless_frozen(self) -> None:
        # A thread of a frozen control group (version 2) stops, but does not run until it is thawed.
        try:
            self._run_to_system_call_stop(time.monotonic() + self._timeout)
        except TargetRefused:
            self._request("PTRACE_INTERRUPT", _INTERRUPT)
            if self._wait() >> 8 != _SYSTEM_CALL_STOP:  # else it was thawed just now
                raise

    def _run_to_system_call_stop(self, deadline: float | None = None) -> None:
        signal = 0
        while True:
            self._resume(_SYSCALL, signal)
            stop = self._wait(deadline)
            if stop >> 8 == _SYSTEM_CALL_STOP:
                return
            if stop >> 16 == _EVENT_CLONE:
                self._request("PTRACE_GETEVENTMSG", _GETEVENTMSG, 0, ctypes.addressof(self._clone))
            signal = _signal_of(stop)

    def _resume(self, request: int, signal: int) -> None:
        self._request("PTRACE_CONT", request, 0, signal)

    def _wait(self, deadline: float | None = None) -> int:
        while True:
            try:
                thread, status = os.waitpid(self._thread, _WALL | (os.WNOHANG if deadline else 0))
            except ChildProcessError:  # another thread's exec has taken it away
                raise self._gone() from None
            if thread and os.WIFSTOPPED(status):
                return status
            if thread:
                raise self._gone()
            if deadline and time.monotonic() > deadline:
                raise TargetRefused(
                    self._pid, "it does not stop: it is frozen or in an uninterruptible wait; try again later"
                )
            time.sleep(2e-5)

    def _get_registers(self) -> bytes:
        buffer = ctypes.create_string_buffer(1024)
        vector = _Vector(ctypes.addressof(buffer), 1024)
        self._request("PTRACE_GETREGSET", _GETREGSET, _NT_PRSTATUS, ctypes.addressof(vector))
        return buffer.raw[: vector.length]

    def _set_registers(self, registers: bytes) -> None:
        buffer = ctypes.create_string_buffer(registers, len(registers))
        vector = _Vector(ctypes.addressof(buffer), len(registers))
        self._request("PTRACE_SETREGSET", _SETREGSET, _NT_PRSTATUS, ctypes.addressof(vector))

    def _forget_system_call(self) -> None:
        # arm64 looks for a restart whenever this says that a system call is being left, as the injected one is.
        number = ctypes.c_int(-1)
        vector = _Vector(ctypes.addressof(number), ctypes.sizeof(number))
        self._request("PTRACE_SETREGSET", _SETREGSET, _NT_ARM_SYSTEM_CALL, ctypes.addressof(vector))

    def _set_signals(self, blocked: ctypes.c_uint64) -> None:
        self._request("PTRACE_SETSIGMASK", _SETSIGMASK, 8, ctypes.addressof(blocked))

    def _try(self, request: int, address: int = 0, data: int = 0) -> int:
        ctypes.set_errno(0)
        return ctypes.get_errno() if _ptrace(request, self._thread, address, data) == -1 else 0

    def _request(self, name: str, request: int, address: int = 0, data: int = 0) -> None:
        match self._try(request, address, data):
            case 0:
                return
            case errno.ESRCH:
                raise self._gone()
            case errno.EPERM:
                raise NotPermitted(self._pid, restriction() or f"the kernel forbids tracing it; {_AS_ROOT}")
            case error:
                raise KernelError(name, error)

    def _gone(self) -> NoSuchProcess:
        return NoSuchProcess(self._pid, "while it was attached to")


def restriction() -> str:
    """Say why this process may not trace the other processes of its user; "" if it may.

    >>> restriction()                                                                                # doctest: +SKIP
    'kernel.yama.ptrace_scope is 1, so a process may only be traced by its parent; run as root or with CAP_SYS_PTRACE'
    """
    ctypes.set_errno(0)
    _ptrace(_SEIZE, 0, None, None)  # there is no thread 0: ESRCH, unless the call itself is forbidden
    if ctypes.get_errno() != errno.ESRCH:
        return "a seccomp filter forbids ptrace(2); allow it in the container's profile (docker: --cap-add SYS_PTRACE)"
    try:
        scope = int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or masked
        scope = 0
    if scope == 3:
        return "kernel.yama.ptrace_scope is 3, so no process may trace until the next boot; boot with a lower one"
    if scope and not capable(SYS_PTRACE):
        whom = "its parent" if scope == 1 else "root"
        return f"kernel.yama.ptrace_scope is {scope}, so a process may only be traced by {whom}; {_AS_ROOT}"
    return ""


_AS_ROOT = "run as root or with CAP_SYS_PTRACE"


def _signal_of(stop: int) -> int:
    # A stop without an event is the delivery of a signal, which is passed on; a group stop or a trap has none to pass.
    return 0 if stop >> 16 else stop >> 8 & 0x7F
