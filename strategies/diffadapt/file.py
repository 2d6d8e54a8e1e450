"""A probe's file: JSON, its weights as base64 of little-endian float32, and a seal.

    {"format": "abduce-probe-1", "body": {…}, "sha256": "…", "hmac_sha256": "…"}

`sha256` of the body shows damage, not forgery: whoever changes the body can write it anew. `hmac_sha256`
shows forgery to those who share its key. Nothing in the file is executed, and none of it reaches a prompt
(the modes are the recipe's); a forged probe could only choose among them badly.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...serving.errors import UsageError
from .probe import Probe, Signature, numeric

FORMAT = "abduce-probe-1"
_WEIGHTS = ("w1", "b1", "w2", "b2", "mean", "std")
_MOST_BYTES = 1 << 28


def save(probe: Probe, path: str | Path, *, key: str | None = None) -> None:
    """Write a probe, sealed with a key if there is one. Raises UsageError where that cannot be."""
    body: dict[str, Any] = {
        "classes": list(probe.classes),
        "signature": asdict(probe.signature),
        "temperature": probe.temperature,
        "tau": probe.tau,
        "report": dict(probe.report),
        "weights": {name: _packed(getattr(probe, name)) for name in _WEIGHTS},
    }
    sealed = {"format": FORMAT, "sha256": hashlib.sha256(_canonical(body)).hexdigest()}
    if key:
        sealed["hmac_sha256"] = _hmac(body, key)
    try:
        Path(path).write_text(json.dumps({**sealed, "body": body}) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Cannot write the probe to {path}: {error.strerror}.") from None


def load(path: str | Path, *, key: str | None = None) -> Probe:
    """Read a probe. With a key, only one that was sealed with it. Raises UsageError for any other file."""
    try:
        if (size := Path(path).stat().st_size) > _MOST_BYTES:
            raise UsageError(f"{path} has {size} bytes: too many for a probe.")
        told = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(
            f"Cannot read the probe {path}: {error.strerror}. Make it with: abduce diffadapt fit --out {path}"
        ) from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is no probe: it is not JSON.") from None
    if not isinstance(told, dict) or told.get("format") != FORMAT or not isinstance(told.get("body"), dict):
        raise UsageError(f"{path} is no probe: it has not the format {FORMAT}.")
    body = told["body"]
    if not hmac.compare_digest(hashlib.sha256(_canonical(body)).hexdigest(), str(told.get("sha256"))):
        raise UsageError(f"The probe {path} was changed or damaged: its sha256 is another. Fit it anew.")
    if key and not hmac.compare_digest(_hmac(body, key), str(told.get("hmac_sha256", ""))):
        raise UsageError(f"The probe {path} was not sealed with this key. Fit it anew, or leave key_env out.")
    try:
        return _probe(body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"The probe {path} is not whole: {error!r}. Fit it anew.") from None


def _probe(body: Mapping[str, Any]) -> Probe:
    weights = {name: _unpacked(body["weights"][name]) for name in _WEIGHTS}
    signature = body["signature"]
    probe = Probe(
        classes=tuple(map(str, body["classes"])),
        signature=Signature(**{**signature, "reference": tuple(map(float, signature["reference"]))}),
        temperature=float(body["temperature"]),
        tau=float(body["tau"]),
        report=body["report"],
        **weights,
    )
    width, n_features = probe.w1.shape
    shapes = {"b1": (width,), "w2": (len(probe.classes), width), "b2": (len(probe.classes),)}
    shapes |= {"mean": (n_features,), "std": (n_features,)}
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise ValueError(f"{name} has the shape {weights[name].shape}, not {shape}")
    if probe.signature.kind not in ("hidden", "text") or not probe.temperature > 0:
        raise ValueError("kind or temperature")
    return probe


def _packed(array: Any) -> dict[str, Any]:
    return {"shape": list(array.shape), "float32": base64.b64encode(array.astype("<f4").tobytes()).decode()}


def _unpacked(told: Mapping[str, Any]) -> Any:
    np = numeric()
    array = np.frombuffer(base64.b64decode(told["float32"], validate=True), dtype="<f4")
    if not np.isfinite(array).all():
        raise ValueError("a weight is not a finite number")
    return array.reshape(told["shape"]).astype(np.float32)


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _hmac(body: Mapping[str, Any], key: str) -> str:
    return hmac.new(key.encode(), _canonical(body), hashlib.sha256).hexdigest()
