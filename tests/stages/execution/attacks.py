"""What hostile or careless code may try, and how it may end. No attack may harm another snippet.

Run with a wall time of a second. Where several ends are allowed, it depends on the kernel and on
the machine's load which one comes first.
"""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LIBC = "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
BREACH = "else: print('BREACH')"


def tried(action: str, before: str = "") -> str:
    """Returns code that prints BREACH if an action succeeds."""
    return (
        f"{before}\ntry:\n    {action}\nexcept (OSError, MemoryError, ValueError): pass\n{BREACH}"
    )


def refused_call(number: int, *arguments: int) -> str:
    """Returns code that prints BREACH if a system call succeeds."""
    passed = ", ".join(map(str, (number, *arguments)))
    return f"{LIBC}if libc.syscall({passed}) >= 0: print('BREACH')"


@dataclass(frozen=True)
class Attack:
    """One snippet, and the statuses it may have."""

    code: str
    """With what `targets` makes named in braces."""
    ends: tuple[str, ...]
    processes: bool = False
    """Whether it needs leave to start processes, without which it ends at once."""

    def at(self, targets: dict[str, str]) -> str:
        """Returns the code, aimed at what there is on this host."""
        code = self.code
        for name, value in targets.items():
            code = code.replace("{" + name + "}", value)
        return code


@contextmanager
def targets() -> Iterator[dict[str, str]]:
    """Makes what attacks are after: listeners of the host, and a file that all may read there."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX) as abstract,
        tempfile.NamedTemporaryFile() as secret,
    ):
        name = f"turnledger-{os.getpid()}"
        abstract.bind("\0" + name)
        abstract.listen()
        os.chmod(secret.name, 0o644)
        port = str(listener.getsockname()[1])
        yield {"port": port, "abstract": name, "secret": secret.name}


TIME = {
    "busy_loop": Attack("while True: pass", ("timeout",)),
    "sleep": Attack("import time; time.sleep(60)", ("timeout",)),
    "power_tower": Attack("9**9**9", ("timeout", "memory")),
    "ignores_signals": Attack(
        "import signal\nfor s in set(range(1, 32)) - {9, 19}: signal.signal(s, signal.SIG_IGN)\n"
        "while True: pass",
        ("timeout",),
    ),
    "closes_stdout_and_loops": Attack(
        "import os\nfor fd in range(64):\n    try: os.close(fd)\n    except OSError: pass\n"
        "while True: pass",
        ("timeout",),
    ),
    "sleeps_at_exit": Attack("import atexit, time; atexit.register(time.sleep, 60)", ("timeout",)),
    "thread_outlives": Attack(
        "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()",
        ("timeout",),
    ),
    "sum_of_a_huge_range": Attack("sum(range(10**12))", ("timeout",)),
}

MEMORY = {
    "at_once": Attack("x = bytearray(4 << 30)", ("memory",)),
    "in_steps": Attack("x = []\nwhile True: x.append(bytearray(1 << 20))", ("memory", "timeout")),
    "caught_again_and_again": Attack(
        "while True:\n    try: x = bytearray(4 << 30)\n    except MemoryError: pass", ("timeout",)
    ),
    "numpy": Attack("import numpy; numpy.ones(1 << 30)", ("memory", "error")),
    "shared_mapping": Attack(tried("mmap.mmap(-1, 4 << 30)", "import mmap"), ("ok",)),
    "shmget": Attack(f"{LIBC}if libc.shmget(0, 1 << 30, 0o1600) >= 0: print('BREACH')", ("ok",)),
    "memfd": Attack(tried("os.memfd_create('x')", "import os"), ("ok",)),
    "parse_bomb": Attack("exec('(' * 100000 + ')' * 100000)", ("error", "memory", "output_limit")),
    "deep_tree": Attack("eval('-' * 200000 + '1')", ("error", "memory")),
    "recursion": Attack("def f(): f()\nf()", ("error",)),
    "recursion_without_limit": Attack(
        "import sys; sys.setrecursionlimit(10**9)\ndef f(x): return [f(x)]\nf(0)",
        ("error", "memory", "timeout"),
    ),
    "raises_its_limits": Attack(
        tried(
            "resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)",
            "import resource",
        ),
        ("ok",),
    ),
}

PROCESSES = {
    "fork": Attack(tried("os.fork()", "import os"), ("ok",)),
    "subprocess": Attack(tried("subprocess.run(['/bin/true'])", "import subprocess"), ("ok",)),
    "exec": Attack(tried("os.execv('/bin/true', ['true'])", "import os"), ("ok",)),
    "multiprocessing": Attack(
        tried(
            "multiprocessing.get_context('fork').Process(target=print).start()",
            "import multiprocessing",
        ),
        ("ok",),
    ),
    "fork_bomb": Attack(
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", ("timeout",), True
    ),
    "daemon": Attack(
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        time.sleep(60)",
        ("ok",),
        True,
    ),
    "thread_bomb": Attack(
        "import threading, time\nwhile True:\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        ("error", "memory", "timeout"),
    ),
    "kills_all": Attack("import os\ntry: os.kill(-1, 9)\nexcept OSError: pass", ("ok", "error")),
    "kills_its_parent": Attack(
        "import os\ntry: os.kill(os.getppid(), 9)\nexcept OSError: pass", ("ok", "error")
    ),
    "kills_its_group": Attack("import os; os.killpg(0, 9)", ("ok", "error", "memory")),
    "kills_process_1": Attack("import os; os.kill(1, 9)", ("ok", "error", "memory")),
}

_NUMBERS = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "unshare": (272, 97),
    "mount": (165, 40),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "setns": (308, 268),
    "pivot_root": (155, 41),
    "init_module": (175, 105),
    "kexec_load": (246, 104),
    "open_by_handle_at": (304, 265),
    "clone3": (435, 435),
    "personality": (135, 92),
}
"""System calls by their numbers on x86-64 and on aarch64."""
_MACHINE = ("x86_64", "aarch64").index(os.uname().machine)

ESCAPES = {
    **{
        name: Attack(refused_call(numbers[_MACHINE], 0, 0, 0), ("ok",))
        for name, numbers in _NUMBERS.items()
    },
    "becomes_root": Attack(tried("os.setuid(0)", "import os\nassert os.getuid() != 0"), ("ok",)),
    "tcp": Attack(
        tried("socket.create_connection(('127.0.0.1', {port}), 2)", "import socket"), ("ok",)
    ),
    "udp": Attack(
        tried(
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
            "import socket",
        ),
        ("ok",),
    ),
    "abstract_socket": Attack(
        tried("socket.socket(socket.AF_UNIX).connect('\\0{abstract}')", "import socket"), ("ok",)
    ),
    "name_lookup": Attack(tried("socket.gethostbyname('example.org')", "import socket"), ("ok",)),
    "x32_calls": Attack(refused_call(0x40000000 + 39), ("ok",)),
}

FILES = {
    **{
        name: Attack(tried(f"open({path!r})"), ("ok",))
        for name, path in {
            "shadow": "/etc/shadow",
            "passwd": "/etc/passwd",
            "home": "/root/.profile",
            "other_processes": "/proc/1/environ",
            "own_memory": "/proc/self/mem",
            "kernel": "/proc/kallsyms",
            "a_file_of_the_host": "{secret}",
        }.items()
    },
    **{
        f"writes_{name}": Attack(tried(f"open({path}, 'w')", "import os, sys"), ("ok",))
        for name, path in {
            "root": "'/breach'",
            "the_interpreter": "sys.executable",
            "the_library": "os.__file__",
            "shm": "'/dev/shm/breach'",
            "usr": "'/usr/breach'",
            "packages": "'/site-packages/0/breach.py'",
        }.items()
    },
    "environment": Attack(
        "import os\nif any('SECRET' in name for name in os.environ): print('BREACH')", ("ok",)
    ),
    "symlink_out": Attack(
        tried("os.symlink('/etc/shadow', '/tmp/l'); open('/tmp/l')", "import os"), ("ok",)
    ),
    "hard_link_in": Attack(
        tried("os.link(os.__file__, '/tmp/l'); open('/tmp/l', 'a')", "import os"), ("ok",)
    ),
    "large_file": Attack(
        "f = open('/tmp/f', 'wb')\nwhile True: f.write(bytes(1 << 20))", ("error",)
    ),
    "sparse_file": Attack(tried("open('/tmp/f', 'wb').truncate(10 << 30)"), ("ok", "error")),
    "many_files": Attack(
        "i = 0\nwhile True:\n    open(f'/tmp/{i}', 'w').close(); i += 1", ("error",)
    ),
}

PROTOCOL = {
    "gibibyte_of_output": Attack(
        "import sys\nfor _ in range(1024): sys.stdout.write('x' * (1 << 20))", ("output_limit",)
    ),
    "writes_everywhere": Attack(
        "import os\nfor fd in range(1000):\n    try: os.write(fd, b'R' * 9)\n"
        "    except OSError: pass\nos._exit(0)",
        ("ok", "output_limit"),
    ),
    "null_in_output": Attack("print('\\0')", ("ok",)),
    "surrogates": Attack("print('\\ud800')", ("error",)),
    "bad_utf8": Attack("import os; _ = os.write(1, b'\\xff\\xfe')", ("ok",)),
    "exit_code": Attack("import sys; sys.exit(3)", ("error",)),
    "exits_at_once": Attack("import os; os._exit(0)", ("ok",)),
    "segfault": Attack("import ctypes; ctypes.string_at(0)", ("error",)),
    "abort": Attack("import os; os.abort()", ("error",)),
    "poisoned_modules": Attack(
        "import builtins, json, os, sys\nbuiltins.print = json.dumps = os.write = None\n"
        "sys.modules.clear()",
        ("ok", "error"),
    ),
    "looks_for_the_gold_answer": Attack(
        "import gc, sys\nframe = sys._getframe()\nseen = []\nwhile frame:\n"
        "    seen.append(repr(frame.f_locals) + repr(frame.f_globals)); frame = frame.f_back\n"
        "seen += [repr(o) for o in gc.get_objects() if isinstance(o, dict)][:2000]\n"
        "if any('gold_' + 'answer' in text for text in seen): print('BREACH')",
        ("ok", "error", "memory", "timeout"),
    ),
}

ATTACKS = TIME | MEMORY | PROCESSES | ESCAPES | FILES | PROTOCOL
CLEAN = "print(6 * 7)"
