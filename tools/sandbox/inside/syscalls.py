"""Numbers of the system calls a program may make, as name/x86_64/aarch64 (`-`: there is no such call).

Numbers never change; they are those of the kernel's unistd_64.h and asm-generic/unistd.h.
"""

from typing import NamedTuple

ARCHITECTURES = {"x86_64": 0, "aarch64": 1}
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_* as seccomp sees them

_HARMLESS = """
# files
read/0/63  write/1/64  readv/19/65  writev/20/66  pread64/17/67  pwrite64/18/68  preadv/295/69
pwritev/296/70  preadv2/327/286  pwritev2/328/287  lseek/8/62  open/2/-  creat/85/-  openat/257/56
close/3/57  close_range/436/436  stat/4/-  fstat/5/80  lstat/6/-  newfstatat/262/79  statx/332/291
access/21/-  faccessat/269/48  faccessat2/439/439  readlink/89/-  readlinkat/267/78  getdents/78/-
getdents64/217/61  getcwd/79/17  chdir/80/49  fchdir/81/50  mkdir/83/-  mkdirat/258/34  rmdir/84/-
unlink/87/-  unlinkat/263/35  rename/82/-  renameat/264/38  renameat2/316/276  link/86/-  linkat/265/37
symlink/88/-  symlinkat/266/36  truncate/76/45  ftruncate/77/46  fallocate/285/47  fsync/74/82
fdatasync/75/83  sync_file_range/277/84  fadvise64/221/223  chmod/90/-  fchmod/91/52  fchmodat/268/53
umask/95/166  utime/132/-  utimes/235/-  utimensat/280/88  futimesat/261/-  dup/32/23  dup2/33/-
dup3/292/24  flock/73/32  sendfile/40/71  copy_file_range/326/285  statfs/137/43  fstatfs/138/44
# waiting, pipes, and sockets that are there already
poll/7/-  ppoll/271/73  select/23/-  pselect6/270/72  epoll_create/213/-  epoll_create1/291/20
epoll_ctl/233/21  epoll_wait/232/-  epoll_pwait/281/22  epoll_pwait2/441/441  eventfd/284/-
eventfd2/290/19  timerfd_create/283/85  timerfd_settime/286/86  timerfd_gettime/287/87  pipe/22/-
pipe2/293/59  sendto/44/206  recvfrom/45/207  sendmsg/46/211  recvmsg/47/212  shutdown/48/210
getsockopt/55/209  getsockname/51/204  getpeername/52/205
# memory and threads
mmap/9/222  munmap/11/215  mprotect/10/226  mremap/25/216  madvise/28/233  mincore/27/232  msync/26/227
brk/12/214  futex/202/98  futex_waitv/449/449  set_robust_list/273/99  get_robust_list/274/100
rseq/334/293  set_tid_address/218/96  membarrier/324/283  sched_yield/24/124  sched_getaffinity/204/123
getcpu/309/168
# time, signals to itself, and the end
clock_gettime/228/113  clock_getres/229/114  clock_nanosleep/230/115  nanosleep/35/101
gettimeofday/96/169  time/201/-  times/100/153  getitimer/36/102  setitimer/38/103  alarm/37/-
pause/34/-  rt_sigaction/13/134  rt_sigprocmask/14/135  rt_sigreturn/15/139  rt_sigpending/127/136
rt_sigtimedwait/128/137  rt_sigsuspend/130/133  sigaltstack/131/132  restart_syscall/219/128  exit/60/93
exit_group/231/94  wait4/61/260  waitid/247/95
# questions
getrusage/98/165  getrlimit/97/163  uname/63/160  getpid/39/172  getppid/110/173  gettid/186/178
getuid/102/174  geteuid/107/175  getgid/104/176  getegid/108/177  getresuid/118/148  getresgid/120/150
getgroups/115/158  getpgrp/111/-  getpgid/121/155  getsid/124/156  getpriority/140/141  getrandom/318/278
"""

_EXAMINED = """
clone/56/220  clone3/435/435  fcntl/72/25  ioctl/16/29  openat2/437/437  prctl/157/167
prlimit64/302/261  socketpair/53/199
"""

_ATTRIBUTES = """
getxattr/191/8  lgetxattr/192/9  fgetxattr/193/10  listxattr/194/11  llistxattr/195/12  flistxattr/196/13
setxattr/188/5  lsetxattr/189/6  fsetxattr/190/7  removexattr/197/14  lremovexattr/198/15  fremovexattr/199/16
"""

_OWN = "mount_setattr/442/442  pivot_root/155/41  seccomp/317/277"


class Calls(NamedTuple):
    """System calls of one architecture: those without conditions, those on extended attributes, and numbers
    by name."""

    harmless: tuple[int, ...]
    attributes: tuple[int, ...]
    number: dict[str, int]


def calls(machine: str) -> Calls:
    """The calls of a machine as `os.uname().machine` names it. Raises KeyError for one that is not known."""
    column = ARCHITECTURES[machine]
    harmless, attributes = (tuple(_read(table, column).values()) for table in (_HARMLESS, _ATTRIBUTES))
    return Calls(harmless, attributes, {**_read(_EXAMINED, column), **_read(_OWN, column)})


def _read(table: str, column: int) -> dict[str, int]:
    rows = [word.split("/") for line in table.splitlines() if line[:1] != "#" for word in line.split()]
    return {row[0]: int(row[1 + column]) for row in rows if row[1 + column] != "-"}
