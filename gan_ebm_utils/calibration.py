"""A discriminator on trial before a GAN is refined: calibrate its logit, diagnose its reach.

Data are samples (R, n, *event) that no network was fitted to, or (n, *event) for all replicates.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import poisson
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from gan_ebm_utils import base
from gan_ebm_utils.base import Gan
from gan_ebm_utils.metrics import energy_distance

MIN_CALIBRATION = 100  # held-out logits of each class
# Beyond these `diagnose` warns; its docstring says where they come from.
MAX_MISSED, MAX_BEYOND, MIN_EFFECTIVE, MAX_NOISE = 0.065, 0.1, 0.002, 2


class _Linear(nn.Module):
    """slope * d + offset, for each replicate its own."""

    def __init__(self, slope: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("slope", slope)
        self.register_buffer("offset", offset)

    def forward(self, d: Tensor) -> Tensor:
        return self.slope * d + self.offset


class _Monotone(nn.Module):
    """Piecewise linear through points (knots, logit(shares)) of each replicate, flat beyond them.

    Both are (R, m); a replicate with fewer points repeats its last one.
    """

    def __init__(self, knots: Tensor, shares: Tensor) -> None:
        super().__init__()
        self.register_buffer("knots", knots)
        self.register_buffer("values", shares.logit())

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        for name, buffer in self.named_buffers():  # m is that of the data a map was fitted to
            saved = state.get(prefix + name)
            if saved is not None and len(saved) == len(buffer):  # else the sizes are refused below
                setattr(self, name, buffer.new_empty(saved.shape))
        super()._load_from_state_dict(state, prefix, *rest)

    def forward(self, d: Tensor) -> Tensor:
        if len(d) != (fitted := len(self.knots)):
            raise ValueError(f"fitted to {fitted} replicates, got logits {tuple(d.shape)}")
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

    >>> g = torch.Generator().manual_seed(0)
    >>> real, fake = torch.randn(1, 5000, generator=g) + 1, torch.randn(1, 5000, generator=g) - 1
    >>> [round(float(part), 1) for part in calibrate(real, fake).state_dict().values()]
    [2.1, 0.0]
    """
    if method not in ("platt", "temperature", "isotonic"):
        raise ValueError(f'method must be "platt", "temperature" or "isotonic", got {method!r}')
    base.check_shape(real=(real, "R n"), fake=(fake, "R n"))
    base.check_samples(real=real, fake=fake)
    n = real.shape[1]
    base.check_count(MIN_CALIBRATION, **{"the number of held-out logits": n})
    logits = torch.cat([fake, real], dim=1).detach().cpu().double().numpy()
    if (np.ptp(logits, axis=1) == 0).any():
        raise ValueError("all held-out logits are equal, so they tell nothing; calibrate another")
    if ((real.amin(dim=1) > fake.amax(dim=1)) | (real.amax(dim=1) < fake.amin(dim=1))).any():
        raise ValueError("a threshold separates held-out logits: regularise, or hold out more")
    labels = np.repeat([0, 1], n)
    centre, spread = logits.mean(axis=1, keepdims=True), logits.std(axis=1, keepdims=True)
    logits = (logits - centre) / spread
    # The sign of the slope that maximises the likelihood of balanced classes.
    wrong = np.flatnonzero(logits[:, n:].mean(axis=1) < logits[:, :n].mean(axis=1))
    if len(wrong):
        found = f"in {len(wrong)} of {len(logits)} replicates generated samples have higher logits"
        warnings.warn(f"{found}: the discriminator is the wrong way round, or blind", stacklevel=2)
    if method == "isotonic":
        # A generated sample above all and a real one below all: no step holds one class only.
        labels = np.append(labels, [0, 1])
        rows = [np.append(row, [row.max(), row.min()]) for row in logits]
        fits = [IsotonicRegression().fit(row, labels) for row in rows]
        ends = [np.stack([fit.X_thresholds_, fit.y_thresholds_]) for fit in fits]
        longest = max(end.shape[1] for end in ends)
        ends = [np.pad(end, ((0, 0), (0, longest - end.shape[1])), "edge") for end in ends]
        knots, shares = np.stack(ends, axis=1)
        kind, parts = _Monotone, (centre + spread * knots, shares)
    else:
        fits = [LogisticRegression(C=math.inf).fit(row[:, None], labels) for row in logits]
        slope = np.stack([fit.coef_[0] for fit in fits]) / spread
        offset = np.stack([fit.intercept_ for fit in fits]) - slope * centre
        kind, parts = _Linear, (slope, 0 * offset if method == "temperature" else offset)
    parts = [base.at_least_float32(real.detach()).new_tensor(part) for part in parts]
    if not all(part.isfinite().all() for part in parts):
        found = f"the logits spread by {spread.min():.3g} only, too little for {parts[0].dtype}"
        raise ValueError(f"{found}; multiply the discriminator's output, or give it in float64")
    return kind(*parts)


def calibrate_discriminator(
    gan: Gan, data: Tensor, generator: torch.Generator, method: str = "platt", replicates: int = 1
) -> Gan:
    """`gan` whose logits are calibrated by `calibrate` on held-out `data` and as many fresh draws.

    Raises and warns as `calibrate` and `base.check_gan` do, and ValueError for data of another
    shape than the generator's samples.

    >>> from gan_ebm_utils.datasets import exact_gan
    >>> g, (gan, data, _, _) = torch.Generator().manual_seed(0), exact_gan()
    >>> calibrated = calibrate_discriminator(gan, data.sample((5000,), g), g)
    >>> [round(float(part), 1) for part in calibrated.discriminator[1].state_dict().values()]
    [1.0, 0.0]
    """
    data = _like_samples(gan, data, generator, replicates)
    x = _passed(gan.generator, gan.prior((replicates, data.shape[1]), generator))
    curve = calibrate(_logits(gan, data), _logits(gan, x), method).to(x.device)
    return gan._replace(discriminator=nn.Sequential(gan.discriminator, curve).eval())


class Diagnosis(NamedTuple):
    """What refinement has to work with, (R,) each but for `is_missed`; its text is one line.

    `missed`: share of the data near which there are hardly any draws, and `is_missed` (R, n) which.
    `beyond`: share of the data whose logit exceeds those of all `n_draws` draws. `effective`: how
    many equally weighted draws the weights w = e^d of the draws amount to, (sum w)^2 / sum w^2.
    `largest`: the largest weight's share of their sum. `before` and `after`: energy distances from
    the data of the draws, and of the draws with their weights, which is what samplers tend to.
    `is_worse`: whether the weights take the draws away from the data. `is_enough`: whether they do
    not, and all else is within the bounds of `diagnose`.

    >>> half, no = torch.tensor([0.5]), torch.tensor([False])
    >>> str(Diagnosis(half, half, 9 * half, half, half, half, no, no, no[None], 100))[:66]
    'refinement can raise a quality score and still move away from the '
    """

    missed: Tensor
    beyond: Tensor
    effective: Tensor
    largest: Tensor
    before: Tensor
    after: Tensor
    is_worse: Tensor
    is_enough: Tensor
    is_missed: Tensor
    n_draws: int

    def __str__(self) -> str:
        def span(values: Tensor, form: str) -> str:
            return " to ".join(dict.fromkeys(format(float(v), form) for v in values.aminmax()))

        n, bad = len(self.is_enough), int((~self.is_enough).sum())
        verdict = "refinement has what it needs"
        if bad:
            verdict = "refinement can raise a quality score and still move away from the data"
            verdict += ", as it does here" if self.is_worse.any() else ""
            verdict += f" (in {bad} of {n} replicates)" if n > 1 else ""
        elif self.missed.max() > MAX_MISSED / 10:
            verdict += " but for the data that the generator misses"
        return (
            f"{verdict}: {span(self.missed, '.1%')} of the data lie where the generator hardly "
            f"draws, {span(self.beyond, '.1%')} beyond the logits of all draws; "
            f"{self.n_draws:,} draws weigh as {span(self.effective, ',.0f')}, the largest weight "
            f"is {span(self.largest, '.1%')} of all; the energy distance to the data is "
            f"{span(self.before, '.2g')} and with the weights {span(self.after, '.2g')}"
        )


def diagnose(
    gan: Gan,
    data: Tensor,
    generator: torch.Generator,
    *,
    replicates: int = 1,
    n_draws: int = 10_000,
    features: Callable[[Tensor], Tensor] | None = None,
) -> Diagnosis:
    """How much of held-out `data` lies where the generator hardly draws, before it is refined.

    Refinement chooses among draws: no weight e^d reaches a mode that has none. Give `gan` its
    refitted and calibrated discriminator. A real sample is missed if, within the distance of its
    k-th real neighbour, the density of the draws is below a twentieth of the data's, as a Poisson
    test shows at the level of 1 %; k is such that a generator of the data's law has 100 draws there
    on average, but at least 10. Distances are Euclidean, of `features` (n, *event) -> (n, d) where
    pixels say little, as a classifier's. The logits alone do not tell: a few draws at the rim of a
    missing mode exceed those of all real samples in it, and then take most of the weight.

    Enough are at most 6.5 % missed, at most 10 % beyond, and weights worth at least .2 % of the
    draws. These bounds come from 25 Gaussians. In 40 diagnoses each of the refitted checkpoints
    `gaussians25_gan` and `gaussians25_wgan` at most .7 % and 4.7 % were missed, 5.6 % beyond, and
    the weights worth at least .26 %. Without draws within 2.5 standard deviations of five modes at
    least 8 % are missed: MH-GAN raised the high quality from .79 to 1.00, recovered 25 modes, and
    the Wasserstein distance to the data rose in three of four replicates; with these modes it fell
    in all four. One mode less is .2 % to 3.7 % missed, which the text mentions from .65 % on.

    A discriminator that is too coarse, or was refitted too shortly, gives weights that take the
    draws away from the data although nothing is missed. `is_worse` if the energy distance with the
    weights exceeds that without by twice its noise, the mean distance of two data times the sum of
    one over each number of points and over the effective number. None of 120 diagnoses of refitted
    checkpoints was so called. With few effective draws a loss stays unseen: compare the two.

    Raises as `calibrate_discriminator` does, and for fewer than 100 samples or draws.

    >>> from gan_ebm_utils.datasets import exact_gan
    >>> g, (gan, data, _, _) = torch.Generator().manual_seed(0), exact_gan()
    >>> print(str(diagnose(gan, data.sample((1000,), g), g))[:63])
    refinement has what it needs: 0.0% of the data lie where the ge
    """
    data = _like_samples(gan, data, generator, replicates)
    base.check_count(MIN_CALIBRATION, n=data.shape[1], n_draws=n_draws)
    x = _passed(gan.generator, gan.prior((replicates, n_draws), generator))
    real, d = _logits(gan, data).cpu(), _logits(gan, x).cpu()
    # In float64 but on the CPU, since not every device has it.
    weight = d.double().softmax(dim=1)
    beyond = (real > d.amax(dim=1, keepdim=True)).double().mean(dim=1)
    effective, largest = 1 / weight.square().sum(dim=1), weight.amax(dim=1)
    look = features or nn.Flatten()
    with torch.no_grad(), base.evaluating(look):
        pairs = [(look(a).cpu(), look(b).cpu()) for a, b in zip(data, x, strict=True)]
    is_missed = torch.stack([_is_missed(*pair) for pair in pairs])
    missed = is_missed.double().mean(dim=1)
    # A weight beyond 1/sqrt(n) of the sum says more of chance than of the law (Ionides 2008).
    kept = weight.clamp(max=n_draws**-0.5)
    apart = [_apart(*pair, w) for pair, w in zip(pairs, kept, strict=True)]
    before, after, noise = torch.tensor(apart, device="cpu").unbind(dim=1)
    is_worse = after > before + MAX_NOISE * noise
    is_enough = (missed <= MAX_MISSED) & (beyond <= MAX_BEYOND) & ~is_worse
    is_enough &= effective >= MIN_EFFECTIVE * n_draws
    found = (missed, beyond, effective, largest, before, after, is_worse, is_enough, is_missed)
    return Diagnosis(*found, n_draws)


def _apart(real: Tensor, fake: Tensor, weight: Tensor, size: int = 2000) -> list[float]:
    """Energy distances of draws (m, d) from data (n, d), without and with weights; their noise."""
    real, found = real[None, :size], []
    share = (torch.arange(size, dtype=weight.dtype, device="cpu") + 0.5) / size
    for w in (torch.full_like(weight, 1 / len(weight)), weight / weight.sum()):
        row = torch.searchsorted(w.cumsum(dim=0), share).clamp(max=len(w) - 1)
        row[0], row[-1] = 0, len(w) - 1  # two draws at least, even where one has all the weight
        row, copies = row.unique(return_counts=True)
        found.append(float(energy_distance(real, fake[None, row], copies[None])))
    spread = sum(part.sum() for part in base.distances(*real, *real)) / real.shape[1] ** 2
    return [*found, float(spread * (w.square().sum() + 1 / real.shape[1] + 1 / size))]


def _is_missed(real: Tensor, fake: Tensor) -> Tensor:
    """Which of points (n, d) have around them less than a twentieth of the points (m, d) due."""
    n, m = len(real), len(fake)
    k = min(n - 1, max(10, math.ceil(100 * n / m)))
    # A point is its own first neighbour.
    radii = [part.kthvalue(k + 1, dim=1).values for part in base.distances(real, real)]
    radius, count = torch.cat(radii), []
    for part in base.distances(real, fake):
        near, radius = radius.split([len(part), len(radius) - len(part)])
        count.append((part <= near[:, None]).sum(dim=1))
    return torch.from_numpy(poisson.cdf(torch.cat(count).numpy(), k * m / n / 20) < 0.01)


def _like_samples(gan: Gan, data: Tensor, generator: torch.Generator, replicates: int) -> Tensor:
    """`data` as (R, n, *event), of the type and on the device of the generator's samples."""
    base.check_samples(data=data)
    z, _ = base.check_gan(gan, replicates, generator, depth=4)
    x = _passed(gan.generator, z[:, :1])
    shape = data.shape if data.ndim == x.ndim else (replicates, *data.shape)
    if (shape[0], *shape[2:]) != (replicates, *x.shape[2:]):
        event = ", ".join(map(str, x.shape[2:]))
        wanted = f"({replicates}, n, {event}), or (n, {event}) for all replicates"
        raise ValueError(f"data must be samples {wanted}; got {tuple(data.shape)}")
    return data.to(x).expand(shape)


def _passed(network: nn.Module, x: Tensor) -> Tensor:
    """network(x) for x (R, n, ...), a thousand samples of each replicate at a time."""
    with torch.no_grad(), base.evaluating(network):
        return torch.cat([network(part) for part in x.split(1000, dim=1)], dim=1)


def _logits(gan: Gan, x: Tensor) -> Tensor:
    return base.at_least_float32(_passed(gan.discriminator, x))
