"""A discriminator's logit on trial: how to calibrate it."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from gan_ebm_utils.base import at_least_float32, check_samples

MIN_CALIBRATION = 100  # held-out logits of each class


class _Linear(nn.Module):
    """slope * d + offset, for each replicate its own."""

    def __init__(self, slope: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("slope", slope)
        self.register_buffer("offset", offset)

    def forward(self, d: Tensor) -> Tensor:
        return self.slope * d + self.offset


class _Monotone(nn.Module):
    """Piecewise linear through points (knots, values) of each replicate, constant beyond them.

    Both are (R, m); a replicate with fewer points repeats its last one.
    """

    def __init__(self, knots: Tensor, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("knots", knots)
        self.register_buffer("values", values)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        for name, buffer in self.named_buffers():  # m is that of the data a map was fitted to
            saved = state.get(prefix + name)
            if saved is not None and len(saved) == len(buffer):  # else the sizes are refused below
                setattr(self, name, buffer.new_empty(saved.shape))
        super()._load_from_state_dict(state, prefix, *rest)

    def forward(self, d: Tensor) -> Tensor:
        if len(d) != len(self.knots):
            raise ValueError(
                f"this calibration was fitted to {len(self.knots)} replicates, got logits "
                f"{tuple(d.shape)}"
            )
        d = d.to(torch.promote_types(d.dtype, self.knots.dtype))
        x, y = self.knots.to(d.dtype), self.values.to(d.dtype)
        # Within the knots the search never ends at a repeated one.
        d = d.clamp(x[:, :1], x[:, -1:])
        right = torch.searchsorted(x, d.detach().contiguous()).clamp(1, x.shape[1] - 1)
        left_x, right_x = x.gather(1, right - 1), x.gather(1, right)
        left_y, right_y = y.gather(1, right - 1), y.gather(1, right)
        return left_y + (d - left_x) / (right_x - left_x) * (right_y - left_y)


def calibrate(real: Tensor, fake: Tensor, method: str = "platt") -> nn.Module:
    """A function that turns a logit (R, n) into a calibrated one, from held-out logits.

    `real` and `fake` are logits (R, n) of equally many real and generated samples that the
    discriminator was not trained on. "platt" fits a d + b by maximum likelihood (Platt 1999).
    "temperature" drops b of the same fit, which only ratios can do without: for a critic, 1/a is
    its temperature. "isotonic" fits any rising function of d (Zadrozny and Elkan 2002). A step
    that held one class only would have an infinite logit; one generated sample is added above all
    and one real sample below all, so that none does. It is flat nearly everywhere, so of no use
    where a gradient is needed. Use it as
    `nn.Sequential(gan.discriminator, calibrate(real, fake))`. Its state can be loaded into a
    calibration of any other logits of R replicates by the same method. The fit is of standardised
    logits: the map of c d + b gives what that of d gives, for every c > 0 and b.

    Raises ValueError for other shapes, fewer than 100 held-out logits of each class, another
    method, logits that are all equal, or logits that a threshold separates, where the likelihood
    has no maximum. Warns if a discriminator is the wrong way round: generated samples have the
    higher mean.
    """
    if method not in ("platt", "temperature", "isotonic"):
        raise ValueError(f'method must be "platt", "temperature" or "isotonic", got {method!r}')
    if real.ndim != 2 or real.shape != fake.shape:
        raise ValueError(
            f"real and fake must be logits (R, n) of one shape, got {tuple(real.shape)} and "
            f"{tuple(fake.shape)}"
        )
    check_samples(real=real, fake=fake)
    n = real.shape[1]
    if n < MIN_CALIBRATION:
        raise ValueError(
            f"{n} held-out logits of each class are too few to calibrate; give at least "
            f"{MIN_CALIBRATION}"
        )
    if bool((torch.cat([real, fake], dim=1) == real[:, :1]).all(dim=1).any()):
        raise ValueError("all held-out logits are equal, so they tell nothing; calibrate another")
    apart = (real.amin(dim=1) > fake.amax(dim=1)) | (real.amax(dim=1) < fake.amin(dim=1))
    if bool(apart.any()):
        raise ValueError(
            "a threshold separates the held-out logits of real and generated samples: no "
            "calibration is finite; regularise the discriminator, or hold out more"
        )
    logits = torch.cat([fake, real], dim=1).detach().cpu().double().numpy()
    labels = np.repeat([0, 1], n)
    centre, spread = logits.mean(axis=1, keepdims=True), logits.std(axis=1, keepdims=True)
    logits = (logits - centre) / spread
    # The sign of the slope that maximises the likelihood of balanced classes.
    wrong = np.flatnonzero(logits[:, n:].mean(axis=1) < logits[:, :n].mean(axis=1))
    if len(wrong):
        warnings.warn(
            f"in {len(wrong)} of {len(logits)} replicates generated samples have the higher "
            "mean logit: the discriminator is the wrong way round, or blind; a logit is high where "
            "a sample is real",
            stacklevel=2,
        )

    def stored(rows: np.ndarray) -> Tensor:
        tensor = at_least_float32(real.detach()).new_tensor(rows)
        if not tensor.isfinite().all():
            raise ValueError(
                f"the logits spread by {float(spread.min()):.3g} only, too little for "
                f"{tensor.dtype}; multiply the discriminator's output, or give it in float64"
            )
        return tensor

    if method == "isotonic":
        # A generated sample above all and a real one below all: no step holds one class only.
        labels = np.append(labels, [0, 1])
        rows = [np.append(row, [row.max(), row.min()]) for row in logits]
        fits = [IsotonicRegression().fit(row, labels) for row in rows]
        longest = max(len(fit.X_thresholds_) for fit in fits)

        knots, shares = (
            np.stack([np.pad(end, (0, longest - len(end)), "edge") for end in ends])
            for ends in zip(*((fit.X_thresholds_, fit.y_thresholds_) for fit in fits), strict=True)
        )
        return _Monotone(stored(centre + spread * knots), stored(shares).logit())
    fits = [LogisticRegression(C=math.inf).fit(row[:, None], labels) for row in logits]
    slope = np.stack([fit.coef_[0] for fit in fits]) / spread
    offset = np.stack([fit.intercept_ for fit in fits]) - slope * centre
    return _Linear(stored(slope), stored(0 * offset if method == "temperature" else offset))
