"""What transformers computes from the same weights in float32; run by the Python of the server's environment.

Reads {"folder", "rows": lists of ids} as JSON and prints for each row, as JSON: the log-probs of all ids but
the first, or for a reward model its score at the last one.
"""

import json
import sys
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification


def main() -> None:
    """Read, compute, print."""
    asked = json.load(sys.stdin)
    folder = asked["folder"]
    rates = "Classification" in AutoConfig.from_pretrained(folder).architectures[0]
    kind: Any = AutoModelForSequenceClassification if rates else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    told = []
    with torch.no_grad():
        for row in asked["rows"]:
            ids = torch.tensor([row])
            logits = model(ids).logits[0]
            if rates:
                told.append(logits.tolist())
            else:
                log_p = logits[:-1].log_softmax(-1)
                told.append(log_p.gather(1, ids[0, 1:, None])[:, 0].tolist())
    json.dump(told, sys.stdout)


main()
