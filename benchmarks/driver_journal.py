"""What the journal costs, CPU and bytes per request.

    python benchmarks/driver_journal.py [--problems 200] [--repeats 9]

Cases and rounds are those of `driver.py`; the journal is in a file. Bytes are of the closed file, beyond the
text of the replies. The exit code is 1 if any bar is not met.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from arguments import command
from driver import CASES, JUDGED, QUESTION, ROUNDS, Bar, Script, cpu_us, driven, judged, setting
from printing import spread

from abduce.orchestrator.journal import Entry, Journal
from abduce.orchestrator.trace import JsonLines
from abduce.serving.flow import Completion, Flow, Generate, Prompt, Usage

BAR_JOURNAL_US, BAR_BYTES = 20.0, 1024.0


def main() -> int:
    """Measure, print, judge."""
    parser = command(__doc__)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    print(setting(options.problems, options.repeats))
    with tempfile.TemporaryDirectory(prefix="abduce-bench-") as folder:
        return judged(journal(Path(folder), options.problems, options.repeats))


def journal(folder: Path, problems: int, repeats: int) -> list[Bar]:
    """The table of (e). All problems make one long run, so that there is one journal a repeat."""
    print("\n(e)  journal on, in a file; per request; bytes: of the closed file, beyond the replies' text")
    bars = []
    for name in JUDGED:
        script = Script.of(CASES[name](0))
        rows = [journaled(folder, script, problems) for _ in range(repeats + 1)][1:]
        alone = journaled(folder, script, 1)
        print(f"\n  {name}, {problems} problems in one run")
        for label in rows[0]:
            print(f"    {label:34} {spread([row[label] for row in rows], '8.1f')}")
        print(f"    {'bytes beyond, one problem a run':34} {alone['bytes beyond']:8.1f}")
        us, size = (median(row[key] for row in rows) for key in ("µs more", "bytes beyond"))
        bars += [
            Bar(f"(e) {name}: µs more", us, BAR_JOURNAL_US),
            Bar(f"(e) {name}: bytes beyond", size, BAR_BYTES),
        ]
    sizes = {length: beyond(folder / "journal.db", length) for length in (100, 500, 1000, 2000)}
    print("\n  bytes beyond, by length of the reply in bytes")
    print("    " + "   ".join(f"{length}: {size:.0f}" for length, size in sizes.items()))
    return [*bars, Bar("(e) replies of up to 2000 bytes: bytes beyond", max(sizes.values()), BAR_BYTES)]


def beyond(file: Path, length: int, n: int = 1000) -> float:
    """Bytes on disk beyond the reply's text, of `n` replies."""
    kept = Journal(file)
    request = Generate(Prompt.user(QUESTION))
    entry = Entry((Completion("x" * length, n_tokens=length // 4),), Usage(calls=1), 0.1234, 0.0567)

    async def write() -> None:
        for i in range(n):
            await kept.append((i // 8, i % 8), request, entry)

    asyncio.run(write())
    kept.close()
    size = file.stat().st_size
    file.unlink()
    return size / n - length


def payload(script: Script) -> int:
    """Bytes of text in a script's replies."""
    drawn = [reply for batch in script.replies for reply in batch if reply is not None]
    return sum(len(sample.text.encode()) for reply in drawn for sample in reply)


def journaled(folder: Path, script: Script, problems: int) -> dict[str, float]:
    """One repeat: each figure the least of its rounds."""
    per_round = max(1, problems // ROUNDS)
    rounds = [journaled_round(folder, script, per_round) for _ in range(min(problems, ROUNDS))]
    least = {name: min(row[name] for row in rounds) for name in rounds[0]}
    n = per_round * script.n_requests
    return {
        "µs more": (least["journal"] - least["without"]) / n,
        "driver with journal and trace file": least["stored"] / n,
        "bytes beyond": least["size"] / n - payload(script) / script.n_requests,
        "opening and closing, ms a run": least["ends"] / 1e3,
        "write-ahead log at its end, KB": least["log"] / 1024,
    }


def journaled_round(folder: Path, script: Script, problems: int) -> dict[str, float]:
    """A run without a journal, one with, and one with both files, as a stored run has them: µs, bytes."""

    def long() -> Flow[None]:
        for _ in range(problems):
            yield from script.again()

    file = folder / "journal.db"
    found = {"without": cpu_us(driven(long(), [].append))}
    began = time.process_time()
    kept = Journal(file)
    opened = time.process_time()
    found["journal"] = cpu_us(driven(long(), [].append, kept))
    found["log"] = file.with_name(file.name + "-wal").stat().st_size
    closing = time.process_time()
    kept.close()
    found["ends"] = (opened - began + time.process_time() - closing) * 1e6
    found["size"] = file.stat().st_size
    file.unlink()
    kept, trace = Journal(file), JsonLines(folder / "trace.jsonl")
    found["stored"] = cpu_us(driven(long(), trace, kept))
    kept.close()
    trace.close()
    file.unlink()
    return found


if __name__ == "__main__":
    sys.exit(main())
