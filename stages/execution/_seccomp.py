"""Filter of system calls for the process of a snippet: what is not listed here is refused.

Standard library only: the process of a snippet installs it in a bare interpreter, as the last step
of its isolation. libseccomp would bring the numbers below, and a shared library that is not
installed everywhere; its Python wrappers on the package index bring no binary of it.

A refused call fails with EPERM, as if the right to it was missing. The exception is clone3, whose
flags no filter can see: it fails with ENOSYS, so that the C library falls back to clone.
"""

import ctypes
import functools
import os
import struct
from typing import Final

_TABLE: Final = """
read:0:63 write:1:64 pread64:17:67 pwrite64:18:68 readv:19:65 writev:20:66 preadv:295:69
pwritev:296:70 preadv2:327:286 pwritev2:328:287 open:2:- openat:257:56 openat2:437:437
creat:85:- close:3:57 close_range:436:436 lseek:8:62 stat:4:- fstat:5:80 lstat:6:-
newfstatat:262:79 statx:332:291 access:21:- faccessat:269:48 faccessat2:439:439 readlink:89:-
readlinkat:267:78 getdents:78:- getdents64:217:61 getcwd:79:17 chdir:80:49 fchdir:81:50
mkdir:83:- mkdirat:258:34 rmdir:84:- unlink:87:- unlinkat:263:35 rename:82:- renameat:264:38
renameat2:316:276 link:86:- linkat:265:37 symlink:88:- symlinkat:266:36 truncate:76:45
ftruncate:77:46 fallocate:285:47 fsync:74:82 fdatasync:75:83 sync_file_range:277:84 chmod:90:-
fchmod:91:52 fchmodat:268:53 umask:95:166 utime:132:- utimes:235:- utimensat:280:88
futimesat:261:- dup:32:23 dup2:33:- dup3:292:24 fcntl:72:25 ioctl:16:29
statfs:137:43 fstatfs:138:44 sendfile:40:71 copy_file_range:326:285 fadvise64:221:223
readahead:187:213
chown:92:- fchown:93:55 lchown:94:- fchownat:260:54 setxattr:188:5 lsetxattr:189:6 fsetxattr:190:7
getxattr:191:8 lgetxattr:192:9 fgetxattr:193:10 listxattr:194:11 llistxattr:195:12
flistxattr:196:13

pipe:22:- pipe2:293:59 poll:7:- ppoll:271:73 select:23:- pselect6:270:72 epoll_create:213:-
epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 eventfd:284:-
eventfd2:290:19 timerfd_create:283:85 timerfd_settime:286:86 timerfd_gettime:287:87
signalfd:282:- signalfd4:289:74

socketpair:53:199 sendto:44:206 recvfrom:45:207 sendmsg:46:211 recvmsg:47:212 shutdown:48:210
getsockopt:55:209 setsockopt:54:208 getsockname:51:204 getpeername:52:205

mmap:9:222 munmap:11:215 mremap:25:216 mprotect:10:226 madvise:28:233 brk:12:214 msync:26:227
mincore:27:232 membarrier:324:283

exit:60:93 exit_group:231:94 wait4:61:260 waitid:247:95 kill:62:129 tkill:200:130 tgkill:234:131
getpid:39:172 gettid:186:178 getppid:110:173 getpgid:121:155 getpgrp:111:- getsid:124:156
getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getgroups:115:158
getresuid:118:148 getresgid:120:150 capget:125:90 prctl:157:167 arch_prctl:158:-
set_tid_address:218:96 set_robust_list:273:99 get_robust_list:274:100 futex:202:98 rseq:334:293
sched_yield:24:124 sched_getaffinity:204:123 sched_setaffinity:203:122 sched_getparam:143:121
sched_getscheduler:145:120 sched_get_priority_max:146:125 sched_get_priority_min:147:126
getpriority:140:141 setpriority:141:140 getrlimit:97:163 setrlimit:160:164 prlimit64:302:261
getrusage:98:165 times:100:153 sysinfo:99:179 uname:63:160 getcpu:309:168 getrandom:318:278

rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136
rt_sigtimedwait:128:137 rt_sigqueueinfo:129:138 rt_sigsuspend:130:133 sigaltstack:131:132
restart_syscall:219:128 pause:34:- alarm:37:- getitimer:36:102 setitimer:38:103
timer_create:222:107 timer_settime:223:110 timer_gettime:224:108 timer_getoverrun:225:109
timer_delete:226:111 nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113
clock_getres:229:114 gettimeofday:96:169 time:201:-
"""
"""`name:number on x86-64:number on aarch64`, `-` where the machine has no such call.

In paragraphs: files; waiting; pairs of sockets, which reach nobody; memory; the process itself and
its threads; signals and time.
"""

CALLS: Final = {
    name: {"x86_64": numbers[0], "aarch64": numbers[1]}
    for name, *numbers in (entry.split(":") for entry in _TABLE.split())
}
"""Name to number by machine, as text."""

_MACHINES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""What the kernel calls the machines in the data that a filter sees (linux/audit.h)."""
_CLONE: Final = {"x86_64": 56, "aarch64": 220}
_CLONE3: Final = 435
_PROCESS_CALLS: Final = {"x86_64": (57, 58, 59, 322), "aarch64": (221, 281)}
"""fork, vfork, execve and execveat."""
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}

_CLONE_THREAD: Final = 0x10000
_X32_BIT: Final = 0x40000000
_SET_MODE_FILTER: Final = 1
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_AT_NUMBER, _AT_MACHINE, _AT_FIRST_ARGUMENT = 0, 4, 16
"""Offsets in `struct seccomp_data`; the lower half of an argument comes first on both machines."""
_EPERM, _ENOSYS = 1, 38

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.argtypes = [ctypes.c_long, ctypes.c_uint, ctypes.c_uint, ctypes.c_char_p]


def filter_program(machine: str, *, processes: bool) -> list[tuple[int, int, int, int]]:
    """Returns the instructions of the filter: code, jump if true, jump if false, operand.

    Args:
        machine: As `os.uname().machine` says it.
        processes: Whether other processes and programs may be started, not only threads.

    Raises:
        OSError: If the numbers of this machine are not known.
    """
    if machine not in _MACHINES:
        raise OSError(f"no filter of system calls for {machine}")
    program = [
        (_LOAD, 0, 0, _AT_MACHINE),
        (_EQUAL, 1, 0, _MACHINES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _AT_NUMBER),
    ]
    if machine == "x86_64":
        # A second table of the same calls under other numbers.
        program += [(_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _FAIL | _ENOSYS)]
    program += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _FAIL | _ENOSYS)]
    numbers = {int(call[machine]) for call in CALLS.values() if call[machine] != "-"}
    if processes:
        numbers |= {_CLONE[machine], *_PROCESS_CALLS[machine]}
    else:
        program += [
            (_EQUAL, 0, 4, _CLONE[machine]),
            (_LOAD, 0, 0, _AT_FIRST_ARGUMENT),
            (_ANY_BIT, 0, 1, _CLONE_THREAD),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _FAIL | _EPERM),
        ]
    for first, last in _ranges(numbers):
        program += [
            (_AT_LEAST, 3, 0, last + 1),
            (_AT_LEAST, 1, 0, first),
            (_RETURN, 0, 0, _FAIL | _EPERM),
            (_RETURN, 0, 0, _ALLOW),
        ]
    return [*program, (_RETURN, 0, 0, _FAIL | _EPERM)]


def _ranges(numbers: set[int]) -> list[tuple[int, int]]:
    """Returns runs of numbers, first and last, in order: the kernel tries a filter on every one."""
    firsts = sorted(n for n in numbers if n - 1 not in numbers)
    lasts = sorted(n for n in numbers if n + 1 not in numbers)
    return list(zip(firsts, lasts, strict=True))


@functools.cache
def filter_code(*, processes: bool) -> bytes:
    """Returns the filter for this machine as the kernel takes it.

    Raises:
        OSError: If the numbers of this machine are not known.
    """
    program = filter_program(os.uname().machine, processes=processes)
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def install(*, processes: bool) -> None:
    """Filters the system calls of this process and of all that it starts, for good.

    The process must have given up gaining rights (`PR_SET_NO_NEW_PRIVS`) and have one thread.

    Raises:
        OSError: If the kernel takes no filter, or the machine is not known.
    """
    code = filter_code(processes=processes)
    held = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(held))
    if _libc.syscall(_SECCOMP[os.uname().machine], _SET_MODE_FILTER, 0, header) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
