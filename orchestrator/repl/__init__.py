"""The tracing REPL: ask a problem, watch the search, stop it, look, go back, fork, go on.

    terminal.py  plain.py        shells: a terminal that redraws; lines, for scripts and everything else
          └──────┬──────┘
             sitting.py          what a command does; replay.py does the same over a saved sitting
          ┌──────┴──────┐
      player.py      desk.py     a run behind a gate, step by step; the runs on the table, to look at

A *step* is one batch of calls with its replies. Every run stays in the store, whatever is typed.
"""
