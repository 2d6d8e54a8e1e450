"""Time of each kernel against what the machine can do at best, behind a check that it is right.

    make bench-gpu            all kernels on the GPU here; writes benchmarks/results/kernels-DEVICE.md
    python benchmarks/kernels.py --only paged,ems

Without a GPU the kernels run in Triton's interpreter, on their largest test case: whether they are right, and
nothing about their time. Needs torch and triton, and nothing else.

Ceilings are measured in the same run: the rate of a large copy and of a large bfloat16 product. "floor" is
the time that the kernel's least bytes or multiply-adds take at these rates, whichever is longer; "share" is
floor / time. "replayed" is the time of a CUDA graph that holds the call: what is left without Python's
launches. A kernel that disagrees with its float64 reference, or whose gradients do, has no time; gradients
are a row of their own, timed with the forward before them. The second table holds what the methods' studies
(benchmarks/gpu) say of whole steps.

Methods are judged side by side, then timed one after another, each in a process of its own (gpu/method.py).
The file is written anew after each, so that whatever happens to one leaves the others' figures.
"""

import argparse
import datetime
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from gpu.clock import ceilings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from abduce.serving.kernels import METHODS

HERE = Path(__file__).resolve().parent
SECONDS = 570.0
"""What the whole may take on a GPU: ten minutes are lent."""
HOUR = 3600.0
SECONDS_CHECK, SECONDS_TIME = 200.0, 75.0
"""What a method may take on a GPU; what it had said until then is kept."""


def said(
    act: str, method: str, device: torch.device, *options: str, seconds: float
) -> Iterator[dict[str, Any]]:
    """What a method's process finds out, and as a last word that it did not end well."""
    command = [sys.executable, "-m", "gpu.method", act, method, "--device", str(device), *options]
    interpreted = {} if device.type == "cuda" else {"TRITON_INTERPRET": "1"}
    with subprocess.Popen(
        command, cwd=HERE, env={**os.environ, **interpreted}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(child.stderr or ()))
        reader.start()
        alarm = threading.Timer(seconds, child.kill)
        alarm.start()
        for line in child.stdout or ():
            if line.startswith("{"):
                yield json.loads(line)
        child.wait()
        alarm.cancel()
        reader.join()
    if child.returncode:
        last = errors[-1].strip()[:200] if errors else f"after {seconds:.0f} s"
        yield {"died": f"{method}: {act} ended with {child.returncode} ({last})"}


# ---------------------------------------------------------------- the tables


def table(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A line a kernel."""
    yield (
        "| kernel | error, in tolerances | of the timed call | time | replayed | floor | share "
        "| others on the same call |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for name, row in rows.items():
        cells = [verdict(row.get("error")), verdict(row.get("timed_error"))]
        if "failed" in row:
            cells += [f"**failed**: {row['failed']}", "", "", "", ""]
        elif "seconds" not in row or not all(wrong <= 1 for wrong in errors(row)):
            cells += [""] * 5
        else:
            captured = micro(row["replayed"]) if "replayed" in row else f"none: {row.get('uncaptured')}"
            cells += [micro(row["seconds"]), captured]
            has_floor = "floor" in row
            cells.append(f"{micro(row['floor'])} ({row['of']})" if has_floor else "")
            cells.append(f"{row['floor'] / row['seconds']:.2f}" if has_floor else "")
            cells.append("; ".join(others(row["peers"])) or "none")
        yield f"| {name} | {' | '.join(cells)} |"


def errors(row: dict[str, Any]) -> list[float]:
    """The errors that are known."""
    return [row[key] for key in ("error", "timed_error") if key in row]


def verdict(error: float | None) -> str:
    """An error in tolerances as the table says it."""
    if error is None:
        return "not checked"
    return f"{error:.2f}" if error <= 1 else f"**wrong** ({error:.1f})"


def others(peers: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What each peer needed, or why it did not run."""
    for name, peer in peers.items():
        yield f"{name} {micro(peer['seconds'])}" if "seconds" in peer else f"{name}: {peer['failed']}"


def micro(seconds: float) -> str:
    """A time in microseconds."""
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-4 else f"{seconds * 1e6:.0f} µs"


def points(bars: list[dict[str, Any]]) -> Iterator[str]:
    """A line a point of the studies."""
    yield "| point | asked | measured | met |"
    yield "|---|---|---|---|"
    for bar in bars:
        met = {True: "met", False: "**not met**", None: ""}[bar["met"]]
        yield f"| {bar['point']} | {bar['asked']} | {bar['measured']} | {met} |"


def source() -> str:
    """The commit, or where git does not say it the sum of the kernels' sources."""
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    done = subprocess.run(git, capture_output=True, text=True)
    if done.returncode == 0:
        return f"commit {done.stdout.strip()}"
    files = sorted((HERE.parent / "serving" / "kernels").rglob("*.py"))
    return (
        f"kernels' sources sha256 {hashlib.sha256(b''.join(f.read_bytes() for f in files)).hexdigest()[:12]}"
    )


class Findings:
    """What is known so far, and the text that says it."""

    def __init__(self, heading: list[str], file: Path | None) -> None:
        self.heading, self.file = heading, file
        self.rows: dict[str, dict[str, Any]] = {}
        self.bars: list[dict[str, Any]] = []
        self.ends: list[str] = []

    def take(self, found: dict[str, Any]) -> None:
        """Add what a method's process has said, and keep the whole."""
        if "bar" in found:
            self.bars.append(found["bar"])
        elif "died" in found:
            self.ends.append(found["died"])
        else:
            row = self.rows.setdefault(found["kernel"], {})
            new = {key: value for key, value in found.items() if key not in ("kernel", "failed")}
            row |= new
            if "failed" in found and "seconds" not in row:  # a check of the timed call that found no memory
                row["failed"] = found["failed"]
        print(json.dumps(found), flush=True)
        if self.file:
            self.file.write_text(self.text())

    def green(self) -> str:
        """The kernels that were found right, by comma: no other is timed."""
        return ",".join(name for name, row in self.rows.items() if row.get("error", 2.0) <= 1)

    def text(self) -> str:
        """Both tables."""
        parts = [*self.heading, "", *table(self.rows)]
        if self.bars:
            parts += ["", *points(self.bars)]
        if self.ends:
            parts += ["", *(f"Ended early: {end}." for end in self.ends)]
        return "\n".join(parts) + "\n"


def main() -> None:
    """Print the tables, and keep them beside the others where they were measured on a GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="methods, by comma")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="time the largest test case instead")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    on_gpu = device.type == "cuda"
    methods = [part for part in chosen.only.split(",") if part] or [*METHODS]
    if unknown := set(methods) - set(METHODS):
        parser.error(f"no method named {', '.join(sorted(unknown))}: write some of {', '.join(METHODS)}")
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU, Triton's interpreter"
    begun = time.monotonic()
    copy, product = ceilings(device)
    heading = [
        f"{datetime.date.today()}, {name}, torch {torch.__version__}, {source()}.",
        f"Copy {copy / 1e9:.0f} GB/s, product {product / 1e12:.1f} TFLOP/s.",
    ]
    file = HERE / "results" / f"kernels-{name.replace(' ', '-').lower()}.md" if on_gpu else None
    if file:
        file.parent.mkdir(exist_ok=True)
    findings = Findings(heading, file)
    with ThreadPoolExecutor(min(len(methods), os.cpu_count() or 1, 8)) as pool:
        limit = SECONDS_CHECK if on_gpu else HOUR
        for found in pool.map(lambda m: [*said("check", m, device, seconds=limit)], methods):
            for what in found:
                findings.take(what)
    rates = ["--copy", str(copy), "--product", str(product), *["--small"] * (chosen.small or not on_gpu)]
    for method in methods:
        left = begun + SECONDS - time.monotonic()
        limit = min(SECONDS_TIME, max(left, 1.0)) if on_gpu else HOUR
        for what in said("time", method, device, "--green", findings.green(), *rates, seconds=limit):
            findings.take(what)
    findings.heading.append(f"All of it took {time.monotonic() - begun:.0f} s.")
    print(findings.text())
    if file:
        file.write_text(findings.text())
        print(f"Written to {file}.")


if __name__ == "__main__":
    main()
