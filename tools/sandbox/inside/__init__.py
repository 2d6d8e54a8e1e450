"""What runs on the other side of the wall, with nothing but the standard library: no file here may import
anything else of the package.

    zygote ──fork──► launcher ──walls, fork──► keeper (pid 1) ──fork──► interpreter ──fork──► interpreter …
    trusted          trusted                   trusted                  runs the programs     a branch

The zygote is a warm Python that never runs a program. The keeper lets an interpreter fork when the host has
ordered it, and at no other time. Interpreters are believed nothing.
"""
