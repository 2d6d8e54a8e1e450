"""Fitting two layers by AdamW: the same data and seed give the same weights on the same machine."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...serving.errors import demand
from .probe import Probe, Signature, numeric


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How a probe is fitted. `width`, decay, batch and the validation split are reconstructed, the rest the
    paper's. `width=0` leaves out the hidden layer: the linear probe of its ablation."""

    epochs: int = 100
    learning_rate: float = 1e-3
    width: int = 256
    weight_decay: float = 0.01
    batch: int = 64
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        demand(self.epochs >= 1, "epochs", self.epochs, "write at least 1, such as 100")
        demand(self.width >= 0, "width", self.width, "write 256, or 0 for a linear probe")
        demand(0 <= self.held_out < 1, "held_out", self.held_out, "write a share, such as 0.1")


def fit(
    features: Any, labels: list[str], classes: tuple[str, ...], signature: Signature, how: Fitting
) -> Probe:
    """A probe for features [n, d] and their labels; of all epochs the one with the least loss on what is held
    out. Classes that no label names keep their place, and are hardly ever chosen."""
    np = numeric()
    x, y = np.asarray(features, dtype=np.float64), np.array([classes.index(label) for label in labels])
    rng = np.random.default_rng(how.seed)
    order = rng.permutation(len(x))
    n_out = int(how.held_out * len(x))
    out, train = order[:n_out], order[n_out:]
    mean, std = x[train].mean(0), x[train].std(0)
    std = np.where(std > 1e-6, std, 1.0)
    x = (x - mean) / std
    counts = np.bincount(y[train], minlength=len(classes))
    weight = np.where(counts > 0, 1 / np.sqrt(np.maximum(counts, 1)), 0.0)
    weight = weight / max(weight[y[train]].mean(), 1e-12)
    theta = _start(x.shape[1], len(classes), how, rng)
    optimiser, best, least = _AdamW(theta, how), _copy(theta), np.inf
    for _ in range(how.epochs):
        shuffled = rng.permutation(train)
        for i in range(0, len(shuffled), how.batch):
            rows = shuffled[i : i + how.batch]
            optimiser.step(_gradient(theta, x[rows], y[rows], weight[y[rows]]))
        judged = out if n_out else train
        if (loss := _loss(theta, x[judged], y[judged], weight[y[judged]])) < least:
            best, least = _copy(theta), loss
    if "w1" not in best:  # ReLU(z) − ReLU(−z) = z, so that one form serves both
        linear, eye = best["w2"], np.eye(len(classes))
        best |= {"w1": np.concatenate([linear, -linear]), "b1": np.zeros(2 * len(classes))}
        best["w2"] = np.concatenate([eye, -eye], axis=1)
    stored = {name: np.asarray(value, dtype=np.float32) for name, value in best.items()}
    return Probe(
        classes, **stored, mean=mean.astype(np.float32), std=std.astype(np.float32), signature=signature
    )


def calibrated(probe: Probe, features: Any, labels: list[str]) -> Probe:
    """The probe with the T of a grid under which the labels are likeliest, its reliability in the report."""
    np = numeric()
    y = np.array([probe.classes.index(label) for label in labels])
    z = probe.logits(np.asarray(features, dtype=np.float64))

    def loss(temperature: float) -> float:
        scaled = z / temperature
        return float((np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(y)), y]).mean())

    probe = replace(probe, temperature=min((2 ** (i / 4) for i in range(-8, 17)), key=loss))
    told = [probe(row) for row in features]
    pairs = [(max(d), probe.classes[d.index(max(d))] == label) for d, label in zip(told, labels, strict=True)]
    table = []
    for low, high in ((0.0, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.01)):
        inside = [pair for pair in pairs if low <= pair[0] < high]
        if inside:
            sure, right = (float(np.mean(each)) for each in zip(*inside, strict=True))
            table.append({"n": len(inside), "confidence": sure, "accuracy": right})
    return replace(probe, report={**probe.report, "reliability": table})


# ---------------------------------------------------------------- parts


def _start(n: int, n_classes: int, how: Fitting, rng: Any) -> dict[str, Any]:
    """He's initialisation; the last layer small, so that all classes begin equal."""
    np = numeric()
    if not how.width:
        return {"w2": rng.normal(0, 0.01, (n_classes, n)), "b2": np.zeros(n_classes)}
    return {
        "w1": rng.normal(0, (2 / n) ** 0.5, (how.width, n)),
        "b1": np.zeros(how.width),
        "w2": rng.normal(0, how.width**-0.5, (n_classes, how.width)),
        "b2": np.zeros(n_classes),
    }


def _forward(theta: Mapping[str, Any], x: Any) -> tuple[Any, Any]:
    np = numeric()
    hidden = np.maximum(x @ theta["w1"].T + theta["b1"], 0.0) if "w1" in theta else x
    z = hidden @ theta["w2"].T + theta["b2"]
    return hidden, z - np.logaddexp.reduce(z, axis=1, keepdims=True)


def _loss(theta: Mapping[str, Any], x: Any, y: Any, weight: Any) -> float:
    """L = − Σ wᵢ ln P(yᵢ | xᵢ) / n."""
    np = numeric()
    return float(-(weight * _forward(theta, x)[1][np.arange(len(y)), y]).mean())


def _gradient(theta: Mapping[str, Any], x: Any, y: Any, weight: Any) -> dict[str, Any]:
    np = numeric()
    hidden, log_d = _forward(theta, x)
    dz = np.exp(log_d)
    dz[np.arange(len(y)), y] -= 1.0
    dz *= weight[:, None] / len(y)
    found = {"w2": dz.T @ hidden, "b2": dz.sum(0)}
    if "w1" in theta:
        below = (dz @ theta["w2"]) * (hidden > 0)
        found |= {"w1": below.T @ x, "b1": below.sum(0)}
    return found


class _AdamW:
    """Decoupled weight decay, β = (0.9, 0.999); changes the parameters in place."""

    def __init__(self, theta: dict[str, Any], how: Fitting) -> None:
        np = numeric()
        self.theta, self.how, self.t = theta, how, 0
        self.m = {name: np.zeros_like(value) for name, value in theta.items()}
        self.v = {name: np.zeros_like(value) for name, value in theta.items()}

    def step(self, gradient: Mapping[str, Any]) -> None:
        self.t += 1
        rate = self.how.learning_rate
        for name, g in gradient.items():
            m, v = self.m[name], self.v[name]
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            up, down = m / (1 - 0.9**self.t), (v / (1 - 0.999**self.t)) ** 0.5 + 1e-8
            if name.startswith("w"):
                self.theta[name] *= 1 - rate * self.how.weight_decay
            self.theta[name] -= rate * up / down


def _copy(theta: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.copy() for name, value in theta.items()}
