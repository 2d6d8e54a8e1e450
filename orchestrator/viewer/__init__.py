"""The trace viewer: a run as a page in the browser, live or finished, and as pictures for papers.

    trace rows ─► Picture ─► changes ─┬─► page.py: one file without network
                                      ├─► live.py: server-sent events to the same page
                                      └─► plot.py: SVG and PNG

| file          | idea                                                                  |
|---------------|-----------------------------------------------------------------------|
| `picture.py`  | what a trace says: nodes, their fates, stops, visits; told as changes  |
| `calls.py`    | the calls, and which call drew or scored which node                    |
| `evidence.py` | which resamplings belong to the same population                        |
| `compare.py`  | two trees laid over each other                                         |
| `page.py`     | the page around the data; `page/` holds its HTML, CSS and scripts      |
| `live.py`     | a run while it goes on; `tail.py` follows its file                     |
| `plot.py`     | tree, timeline and curves with matplotlib                              |
"""
