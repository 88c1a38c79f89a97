"""Memory of a process, as Linux keeps it; getrusage would count what the parent held when it forked.

python benchmarks/memory.py transcribe clip.wav  # the command line's own work, and its peak in GiB on stderr
"""

import sys
from pathlib import Path


def memory_of(process: int | str = "self") -> dict[str, int]:
    """Bytes by the names of /proc/PID/status: "VmHWM" is the peak, "VmRSS" what is resident now, "RssAnon" its own.

    Raises:
        OSError: The process has ended.
    """
    fields = (line.split() for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return {words[0][:-1]: 1024 * int(words[1]) for words in fields if words[-1] == "kB"}


def main() -> None:
    from pinyin_llm.inference.cli import main as run

    run(sys.argv[1:])
    print(memory_of()["VmHWM"] / 2**30, file=sys.stderr)


if __name__ == "__main__":
    main()
