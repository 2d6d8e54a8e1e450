"""What a program may use."""

from dataclasses import dataclass

from ...serving.errors import UsageError


@dataclass(frozen=True, slots=True)
class Limits:
    """Defaults: enough for a model's arithmetic and the tests of HumanEval."""

    wall_s: float = 10.0
    cpu_s: int = 10  # of all threads together
    memory_bytes: int = 1 << 30  # address space of each interpreter
    output_bytes: int = (
        10_000  # shown of what it prints, and of its complaint; at 100 times that it is killed
    )
    open_files: int = 64
    files_bytes: int = 1 << 27  # of all files of a session and its branches together; they are in memory
    threads: int = 128  # of a session and its branches together; half as many branches

    def __post_init__(self) -> None:
        if not (self.wall_s > 0 and self.cpu_s > 0 and self.memory_bytes >= 1 << 27):
            raise UsageError("wall_s and cpu_s must be above 0, and memory_bytes at least 128 MiB (1 << 27).")
        if self.output_bytes < 1 or self.open_files < 16:
            raise UsageError("output_bytes must be at least 1, and open_files at least 16.")
        if self.files_bytes < 1 << 16 or self.threads < 1:
            raise UsageError("files_bytes must be at least 65536 (1 << 16), and threads at least 1.")
