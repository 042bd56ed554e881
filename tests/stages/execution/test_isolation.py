"""What a snippet cannot reach, and cannot leave behind. Each test is one attack."""

import os
import socket

import pytest

from tests.stages.execution.frames import isolated, run_one, snippet_frame


def outcome_of_open(executor, path, mode="r"):
    row = run_one(executor, f"open({str(path)!r}, {mode!r})")
    return row["stderr"].strip().rpartition("\n")[2].partition(":")[0]


DENIED = {"FileNotFoundError", "PermissionError", "OSError", "NotADirectoryError"}


def test_listener_on_loopback_is_out_of_reach(executor):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            pass
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=0.5)"
        assert run_one(executor, code)["status"] == "error"


def test_abstract_socket_of_the_host_is_out_of_reach(executor):
    with socket.socket(socket.AF_UNIX) as listener:
        name = f"\0turnledger-test-{os.getpid()}"
        listener.bind(name)
        listener.listen()
        code = f"import socket; socket.socket(socket.AF_UNIX).connect({name!r})"
        # Written without a null character, which would be refused before it is tried.
        assert "\\x00" in code
        assert run_one(executor, code)["status"] == "error"


def test_readable_file_of_the_user_is_not_seen(executor, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    assert outcome_of_open(executor, secret) in DENIED


@pytest.mark.parametrize("path", ["/etc/shadow", "/etc/passwd", "/proc/1/environ", "/proc/mounts"])
def test_file_of_the_system_is_not_seen(executor, path):
    assert outcome_of_open(executor, path) in DENIED


@pytest.mark.parametrize("path", ["/root", "/home", "/var", "/proc", "/sys", "/tmp"])
def test_folder_shows_no_file_of_the_host(executor, path):
    code = f"import os\nfor _, _, files in os.walk({path!r}): print(files)"
    # The folders of an interpreter that is installed in a home may show, and nothing beside.
    inside = [os.path.realpath(p) for p in (os.sys.base_prefix, os.sys.prefix)]
    if any(folder.startswith(path + "/") for folder in inside):
        code = (
            f"import os\nkeep = {inside!r}\n"
            f"for top, dirs, files in os.walk({path!r}):\n"
            "    dirs[:] = [d for d in dirs if os.path.join(top, d) not in keep]\n"
            "    print(*files, end='')"
        )
        assert run_one(executor, code)["stdout"] == ""
    else:
        assert set(run_one(executor, code)["stdout"].split()) <= {"[]"}


def test_environment_of_the_parent_is_not_seen(executor, monkeypatch):
    monkeypatch.setenv("TURNLEDGER_TEST_SECRET", "mellon")
    executor = isolated()
    row = run_one(executor, "import os; print(sorted(os.environ.items()))")
    assert "PATH" in row["stdout"]
    assert "mellon" not in row["stdout"]


@pytest.mark.parametrize(
    "folder", ["/", "/usr", "/usr/lib", "/dev", "/etc", "/proc", "/root", "/var/tmp", "/dev/shm"]
)
def test_nothing_outside_tmp_can_be_written(executor, folder):
    assert outcome_of_open(executor, f"{folder}/breach", "w") in DENIED
    assert not os.path.exists(f"{folder}/breach")


def test_packages_cannot_be_written(executor):
    folder = os.path.dirname(pytest.__file__)
    assert outcome_of_open(executor, f"{folder}/breach.py", "w") in DENIED


def test_null_device_works(executor):
    code = "import os\nwith open(os.devnull, 'w') as f: f.write('x')\nprint(len(os.urandom(8)))"
    assert run_one(executor, code)["stdout"] == "8\n"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="system calls by their number")
@pytest.mark.parametrize("keyring", [-3, -4, -5])
def test_keys_of_a_snippet_are_gone_for_the_next(keyring):
    executor = isolated(workers=1)
    syscall = "import ctypes; print(ctypes.CDLL(None).syscall"
    rows = executor.execute(
        snippet_frame(
            [
                f"{syscall}(248, b'user', b'left', b'data', 4, {keyring}))",  # add_key
                f"{syscall}(250, 10, {keyring}, b'user', b'left', 0))",  # KEYCTL_SEARCH
            ]
        )
    )
    assert rows["stdout"][1] == "-1\n"


def test_files_of_a_snippet_are_gone_for_the_next():
    executor = isolated(workers=1)
    codes = [
        "open('left', 'w').write('x'); open('/tmp/left2', 'w')",
        "import os; print(os.listdir())",
    ]
    rows = executor.execute(snippet_frame(codes))
    assert rows["status"].to_list() == ["ok", "ok"]
    assert rows["stdout"][1] == "[]\n"


def test_variables_of_a_snippet_are_gone_for_the_next():
    executor = isolated(workers=1)
    rows = executor.execute(snippet_frame(["import builtins; builtins.left = 1", "print(left)"]))
    assert rows["status"].to_list() == ["ok", "error"]


def test_space_in_tmp_is_bounded():
    executor = isolated(file_size_mib=1)
    code = "for i in range(3):\n    with open(str(i), 'wb') as f: f.write(bytes(2**19))"
    row = run_one(executor, code)
    assert row["status"] == "error"
    assert "No space left" in row["stderr"]


def test_file_size_of_zero_forbids_files():
    executor = isolated(file_size_mib=0)
    assert outcome_of_open(executor, "/tmp/file", "w") in DENIED


def test_fork_bomb_is_contained_and_the_next_snippet_runs():
    executor = isolated(wall_time_s=1.0, child_processes=True)
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    rows = executor.execute(snippet_frame([bomb, "print('clean')"]))
    assert rows["status"].to_list() == ["timeout", "ok"]


def test_number_of_processes_is_limited():
    executor = isolated(threads=8, child_processes=True)
    code = (
        "import os, time\nmade = 1\ntry:\n    while os.fork(): made += 1\n"
        "    time.sleep(60)\nexcept OSError: print(made)"
    )
    assert run_one(executor, code)["stdout"] == "8\n"


def test_background_process_ends_with_its_snippet():
    executor = isolated(child_processes=True)
    left = "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(60)"
    row = run_one(executor, left)
    assert row["status"] == "ok"
    assert row["wall_s"] < 15


@pytest.mark.parametrize(
    "attack",
    ["os.kill(-1, 9)", "os.kill(os.getppid(), 9)", "os.killpg(0, 9)", "os.kill(1, 9)"],
)
def test_killing_harms_nobody(attack):
    executor = isolated(workers=1)
    code = f"import os\ntry: {attack}\nexcept OSError: pass"
    rows = executor.execute(snippet_frame([code, "print('clean')"]))
    assert rows["status"][0] in ("ok", "error")
    assert rows["status"][1] == "ok"


@pytest.mark.parametrize("flag", [0x10000000, 0x00020000, 0x40000000])
def test_no_further_namespace_can_be_made(executor, flag):
    code = f"import ctypes; print(ctypes.CDLL(None).unshare({flag}))"
    assert run_one(executor, code)["stdout"] == "-1\n"


def test_no_right_is_left(executor):
    code = (
        "import ctypes, os\n"
        "data = ctypes.create_string_buffer(24)\n"
        "header = (ctypes.c_uint * 2)(0x20080522, 0)\n"
        "ctypes.CDLL(None).capget(header, data)\n"
        "print(any(data.raw), os.getuid() == 0, ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))"
    )
    assert run_one(executor, code)["stdout"] == "False False 1\n"


def test_forged_protocol_changes_nothing(executor):
    code = (
        "import json, os, struct\n"
        "forged = json.dumps({'status': 'ok', 'stdout': 'forged', 'stderr': '', 'exit_code': 0,"
        " 'wall_s': 0, 'cpu_s': 0}).encode()\n"
        "for fd in range(64):\n"
        "    for data in (struct.pack('!I', len(forged)) + forged, b'R', b'E setup failed'):\n"
        "        try: os.write(fd, data)\n"
        "        except OSError: pass\n"
        "os._exit(7)"
    )
    rows = executor.execute(snippet_frame([code, "print(1)", "print(2)"]))
    assert rows["status"].to_list() == ["error", "ok", "ok"]
    assert rows["exit_code"].to_list() == [7, 0, 0]
    assert rows["stdout"].to_list()[1:] == ["1\n", "2\n"]


SCANS_ITS_MEMORY = """
import ctypes, os, re, threading
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
read, write = os.pipe()
found = set()
top = libc.sbrk(0)
for start, end in ((top - (8 << 20), top), (id(object()) - (8 << 20), id(object()) + (8 << 20))):
    for page in range(start & ~4095, end, 4096):
        if libc.write(write, page, 4096) == 4096:  # fails where there is no memory
            found |= set(re.findall(rb"tok[0-9a-f]{16}en", os.read(read, 4096)))
print(len(found))
"""


def test_memory_holds_nothing_of_other_snippets():
    executor = isolated(workers=1)
    tokens = [f"tok{number:016x}en" for number in range(1 << 60, (1 << 60) + 24)]
    codes = [f"x = '{token} {'y' * 900}'; print(x)" for token in tokens]
    rows = executor.execute(snippet_frame([*codes, *[SCANS_ITS_MEMORY] * 8]))
    assert rows["status"].to_list() == ["ok"] * len(rows)
    assert rows["stdout"].to_list()[24:] == ["0\n"] * 8


def test_scanning_memory_finds_what_is_there(executor):
    """Else the test above could not fail."""
    code = "kept = ['tok' + '0123456789abcdef' + 'en' for _ in range(9)]\n" + SCANS_ITS_MEMORY
    assert run_one(executor, code)["stdout"] == "1\n"


@pytest.mark.parametrize("device", ["null", "zero", "full", "random", "urandom"])
def test_times_of_devices_cannot_be_changed(executor, device):
    before = os.stat(f"/dev/{device}").st_mtime_ns
    code = f"import os\ntry: os.utime('/dev/{device}')\nexcept OSError as e: print(e.errno)"
    assert run_one(executor, code)["stdout"] == "30\n"  # EROFS
    assert os.stat(f"/dev/{device}").st_mtime_ns == before


def test_locks_reach_nobody_else(executor):
    code = "import fcntl, os\nwith open(os.__file__) as f: fcntl.flock(f, fcntl.LOCK_EX)"
    assert run_one(executor, code)["status"] == "error"
