"""Makes docs/images/repl.svg: a sitting in a real terminal (tmux), typed by this script.

    python docs/images/make_repl.py [SCRIPT]

Needs tmux and the small model (abduce model fetch). The picture is what tmux has on its screen in the end.
"""

import io
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS, ROWS = 104, 48
RECIPE = "a-star-long-products"
SITTING = (  # what is typed, and what is waited for
    ("check numeric=72", "numeric=72"),
    ("24 x 3", "A ended"),
    ("back 3", "B paused"),
    ("fork strategy=particle_filter particles=3", "C paused"),
    ("run", "C ended"),
    ("compare A C", "They part at|they part at"),
    ("goto B", "B paused.*hel"),
)


def main() -> None:
    """Type the sitting, and keep the last screen."""
    with tempfile.TemporaryDirectory() as home:
        command = f"{sys.executable} -m abduce repl --recipe {RECIPE}"
        tmux("new-session", "-d", "-x", str(COLUMNS), "-y", str(ROWS), f"ABDUCE_HOME={home} {command}")
        try:
            until("Type a problem")
            for line, seen in SITTING:
                tmux("send-keys", "-l", line)
                tmux("send-keys", "Enter")
                until(seen)
                time.sleep(0.5)
            screen = tmux("capture-pane", "-p", "-e")
        finally:
            tmux("kill-server")
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(screen.rstrip()))
    picture = console.export_svg(title=f"abduce repl --recipe {RECIPE}")
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # no font from elsewhere
    Path(__file__).with_name("repl.svg").write_text(picture)


def tmux(*words: str) -> str:
    """What tmux answers, on a server of its own."""
    return subprocess.run(  # noqa: S603
        ["tmux", "-L", "abduce-picture", *words],  # noqa: S607
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def until(seen: str) -> None:
    """Wait until something is on the screen."""
    for _ in range(1200):
        if re.search(seen, tmux("capture-pane", "-p")):
            return
        time.sleep(0.1)
    sys.exit(f"not seen: {shlex.quote(seen)}\n{tmux('capture-pane', '-p')}")


if __name__ == "__main__":
    main()
