"""Runs the code of a page as a reader would, and puts what it prints and draws below each block.

In a page, blocks of ``python`` and ``sh`` run, in order, in one program; ``py`` and ``bash`` do
not, and a comment in front says why::

    <!-- not run: the code of another library -->

A picture that a block has saved is shown by a comment after it, with words for those who do not
see it::

    <!-- picture: occupancy.png | Occupancy against the number of slots -->
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^(`{3,})(\w*)[^\n]*\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"^<!-- picture: (\S+) \| (.+?) -->$", re.MULTILINE | re.DOTALL)
REASON = re.compile(r"<!-- not run: .{10,} -->\n+$")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
RUN = ("python", "sh")
SHOWN = ("py", "bash")
END = "\x1e"  # printed after each block
LONGEST = 300  # seconds


class PageError(Exception):
    """A block of a page that failed; the message is what Python said."""


@dataclass(frozen=True)
class Ran:
    """What a page has printed, block by block, and the folder with its files."""

    outputs: list[str]
    folder: Path


def blocks(text: str) -> list[tuple[str, str]]:
    """Give the blocks that run: language and code."""
    return [(m[2], m[3]) for m in FENCE.finditer(text) if m[2] in RUN]


def unexplained(text: str) -> list[str]:
    """Give the first line of each block that neither runs nor has a reason in front of it."""
    return [
        (m[3].splitlines() or [""])[0]
        for m in FENCE.finditer(text)
        if m[2] in SHOWN and not REASON.search(text[: m.start()])
    ]


def program(text: str) -> str:
    """Join the blocks of a page into one program that tells where each of them ends."""
    end = f'if __name__ == "__main__": print({END!r}, flush=True)\n'  # not in its workers
    return "".join(
        (code if language == "python" else _shell(code)) + end for language, code in blocks(text)
    )


def _shell(code: str) -> str:
    return f'__import__("subprocess").run({code!r}, shell=True, check=True)\n'


def execute(text: str, folder: Path) -> Ran:
    """Run the program of a page in a folder of its own."""
    script = folder / "page.py"
    script.write_text(program(text), encoding="utf-8")
    scripts = str(Path(sys.executable).parent)  # of the stowplan command
    done = subprocess.run(
        [sys.executable, script.name],
        capture_output=True,
        check=False,
        cwd=folder,
        env={
            **os.environ, **ONE_THREAD, "MPLBACKEND": "agg", "PYTHONIOENCODING": "utf-8",
            "PATH": scripts + os.pathsep + os.environ.get("PATH", ""),
        },
        encoding="utf-8",
        timeout=LONGEST,
    )  # fmt: skip
    if done.returncode:
        raise PageError(done.stderr)
    return Ran(done.stdout.split(END + "\n")[:-1], folder)


def missing_pictures(text: str, folder: Path) -> list[str]:
    """Give the pictures that a page shows and its code has not drawn."""
    return [name for name, _ in PICTURE.findall(text) if not (folder / name).is_file()]


def with_results(text: str, ran: Ran, address: str) -> str:
    """Put what the blocks printed and drew into a page; `address` is that of the folder."""
    outputs = iter(ran.outputs)

    def printed(match: re.Match[str]) -> str:
        output = next(outputs).rstrip() if match[2] in RUN else ""
        if not output:
            return match[0]
        return f"{match[0]}\n\n````{{code-block}} text\n:class: output\n\n{output}\n````"

    def drawn(match: re.Match[str]) -> str:
        words = " ".join(match[2].split())
        return f"```{{figure}} {address}/{match[1]}\n:alt: {words}\n\n{words}\n```"

    return PICTURE.sub(drawn, FENCE.sub(printed, text))


def setup(app: Any) -> dict[str, Any]:
    """Let Sphinx run the pages that it reads."""
    root = Path(app.srcdir) / "executed"

    def read(app: Any, name: str, source: list[str]) -> None:
        if not app.config.run_pages or not blocks(source[0]):
            return
        folder = root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        source[0] = with_results(source[0], execute(source[0], folder), f"/executed/{name}")

    app.add_config_value(
        "run_pages", True, "env", bool
    )  # sphinx-build -D run_pages=0: a quick look
    app.connect("source-read", read)
    return {"version": "1", "parallel_read_safe": True}
