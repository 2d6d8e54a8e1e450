"""`abduce serve`: recipes behind an OpenAI-compatible API, each recipe a model.

    client ──► app ─ keys ─ gate ──► Pipeline.asolve, as in Python and on the command line ──► replies

| file          | idea                                                              |
|---------------|-------------------------------------------------------------------|
| `wire.py`     | what a request may hold, checked                                   |
| `asked.py`    | from a request to a task, sampling and limits                      |
| `served.py`   | a model: the pipeline of a recipe, tailored to each request        |
| `running.py`  | the searches of one request, and what they spend                   |
| `replies.py`  | from results to reply bodies and stream chunks                     |
| `streaming.py`| server-sent events                                                 |
| `keys.py`     | who may ask; `accounts.py` how much each may spend                 |
| `gate.py`     | how many run and wait at once                                      |
| `metrics.py`  | counters for Prometheus                                            |
| `openapi.py`  | the description of the API                                         |
| `app.py`      | routes, errors                                                     |
| `server.py`   | listening, signals, draining                                       |
"""
