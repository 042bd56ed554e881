"""What the policy is shown of an execution: a pure function of its outcome."""

import re

from schemas.categories import ExecutionStatus

_ADDRESS = re.compile(r" at 0x[0-9a-f]+(?=>)")
_PHRASES = {
    ExecutionStatus.TIMEOUT: "timeout",
    ExecutionStatus.MEMORY: "out of memory",
    ExecutionStatus.OUTPUT_LIMIT: "too much output",
    ExecutionStatus.REFUSED: "refused",
    ExecutionStatus.INFRASTRUCTURE: "not available",
}


def observation_text(status: str, stdout: str, stderr: str, *, max_chars: int) -> str:
    """Returns the text that the policy sees in place of a snippet's whole outcome.

    `ok` shows the standard output, `error` also the last line of the traceback; every other
    status shows a fixed phrase, because what was printed before depends on the machine's speed.
    Addresses in the representation of objects, `<generator object f at 0x7f...>`, are left out:
    they differ from process to process, and the same code is to show the same text.

    Args:
        status: A value of `schemas.categories.ExecutionStatus`.
        stdout: Standard output of the snippet.
        stderr: Standard error of the snippet.
        max_chars: Longest result. The middle of a longer one gives way to `[N cut]`, N being
            the number of characters cut; where not even that fits, the end is cut off.
    """
    kind = ExecutionStatus(status)
    if kind is ExecutionStatus.OK:
        text = stdout.strip() or "(no output)"
    elif kind is ExecutionStatus.ERROR:
        last_line = stderr.strip().rpartition("\n")[2].strip()
        text = "\n".join(part for part in (stdout.strip(), last_line) if part) or "error"
    else:
        text = _PHRASES[kind]
    return _cut_middle(_ADDRESS.sub("", text), max_chars)


def _cut_middle(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    room = max_chars - len(f"[{len(text)} cut]")
    if room < 2:
        return text[:max_chars]
    head, tail = room - room // 2, room // 2
    return f"{text[:head]}[{len(text) - room} cut]{text[-tail:]}"
