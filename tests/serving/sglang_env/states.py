"""Last-layer states of the last token, from the same weights in float32; run by the Python of the server's
environment. Reads {"folder", "rows": lists of ids} as JSON and prints a vector for each row, as JSON."""

import json
import sys

import torch
from transformers import AutoModel


def main() -> None:
    """Read, compute, print."""
    asked = json.load(sys.stdin)
    model = AutoModel.from_pretrained(asked["folder"], dtype=torch.float32).eval()
    with torch.no_grad():
        states = [model(torch.tensor([row])).last_hidden_state[0, -1].tolist() for row in asked["rows"]]
    json.dump(states, sys.stdout)


main()
