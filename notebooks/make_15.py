import sys; sys.path.insert(0,'/tmp/w')
from nbtools import Book
b=Book()
b.md(r'''
# 15 Pictures: a hinge, a ratio, and an FID

You have a GAN of small pictures that took a GPU for a day.
Its discriminator was trained with a hinge loss and spectral normalisation, and you did not throw it away.
A paper samples with it and its FID falls from 21.7 to 15.8.
You try the same, and yours rises from 19 to 33.
What went wrong?

:::{admonition} In short
:class: in-short

**Question.** How does one sample with the discriminator of a GAN of pictures, and how is it known that the samples are better?

**Answer.** TBD

**You need.** Latent chains from [chapter 08](08_ddls.ipynb), refits from [chapter 07](07_mh_gan.ipynb), and the comparison of [chapter 10](10_one_gan_one_budget.ipynb).

**Time.** TBD minutes to read, a minute to run on two CPU cores; no GPU is needed.
:::
''')
b.fold("Set-up", '''
import importlib.util

if importlib.util.find_spec("gan_ebm_utils") is None:
    %pip install -q ..

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from gan_ebm_utils import checkpoints, metrics, plotting
from gan_ebm_utils.base import randn, seeded
from gan_ebm_utils.claims import claim
from gan_ebm_utils.energies import latent_energy
from gan_ebm_utils.samplers import langevin, run_chain

plotting.set_style()
''')
b.code('''
# Change a number and run again.
N_SHOWN = 16  # pictures in a row of a figure
STEPS = 40  # of the chains in the last figure
''')
b.md(r'''
## Two GANs of CIFAR-10

The {term}`recipe` `cifar10_sngan` trains two GANs on CIFAR-10, 50,000 pictures of 32 by 32 pixels in ten classes.
The *DCGAN* {cite:p}`radford2016` has plain convolutions and the loss of [chapter 01](01_density_ratios.ipynb).
The *SNGAN* {cite:p}`miyato2018` has residual blocks, a hinge loss, and a discriminator whose weights are divided by their largest singular value.
Ours have a quarter of the published widths, TBD.
{numref}`fig-15-draws` shows draws of both beside pictures of the test set.
''')
b.code('''
gans = {name: checkpoints.load(f"cifar10_{name}") for name in ("dcgan", "sngan")}
judge = checkpoints.load("cifar10_features")
facts = {name: stored.card["metrics"] for name, stored in gans.items()}
shown = {"test set": judge.tensors["check_images"].float() / 127.5 - 1}
for name, stored in gans.items():
    gan, rng = stored.gan(), seeded(1, "cpu")
    with torch.no_grad():
        shown[name.upper()] = gan.generator(gan.prior((1, N_SHOWN), rng))[0]
''')
b.fig("fig-15-draws","TBD","TBD",'''
fig, axes = plt.subplots(3, 1, figsize=(5.6, 4.6))
for ax, (name, images) in zip(axes, shown.items(), strict=True):
    plotting.image_grid(ax, images, 8, name)
plt.show()
''')
b.md(r'''
## A hinge logit is no log ratio

SNGAN trains its discriminator with the *hinge loss*

$$
\mathcal L_d = \mathbb E_p \max(0, 1 - d(x)) + \mathbb E_{p_g} \max(0, 1 + d(x)) .
$$ (eq-15-hinge)

:::{prf:proposition} What a hinge knows
:label: prop-15-hinge

Let $p$ and $p_g$ be densities.

1. $\mathcal L_d$ is least for $d^*(x) = \operatorname{sign}(p(x) - p_g(x))$, and its least value is $2 - 2\, \mathrm{TV}(p, p_g)$. Where $p \ne p_g$ and both are positive, every other $d$ does worse.
2. Let $A = \{p > p_g\}$, and let no point have $p = p_g$. Samples of $p_g$, weighted by $e^{d^*}$, have the density $\frac{e}{Z}\, p_g$ on $A$ and $\frac{1}{e Z}\, p_g$ elsewhere: within $A$ their density is in proportion to $p_g$, whatever $p$ is.
:::

:::{prf:proof}
&nbsp;

1. At a point we minimise $p \max(0, 1 - t) + p_g \max(0, 1 + t)$ over $t = d(x)$. Its slope is $-p$ for $t < -1$, $p_g - p$ between $-1$ and $1$, and $p_g$ for $t > 1$. If $p > p_g > 0$ the slope changes its sign at $t = 1$ only, if $0 < p < p_g$ at $t = -1$ only. The value there is $2 \min(p, p_g)$, and $\int \min(p, p_g) = 1 - \mathrm{TV}(p, p_g)$.
2. Insert $d^* = 1$ on $A$ and $-1$ elsewhere. $\square$
:::

A logit of 1 says "more likely real than not".
It does not say how much more.
Whoever puts it into $p_0(z)\, e^{d(G(z))}$ samples something between $p_g$ and the data, at a temperature that the loss has set.
A network that is trained for some steps only has no exact sign, but a value between; nothing makes that value a logarithm, either.

What has ours learned?
We sort test images and as many draws by the logit, and look at the share of real ones among neighbours in this order: by Bayes' rule its logit *is* the log ratio at that value.
''')
b.code('''
def log_ratio(real, fake, n_bins=12):  # of bins of the logit: its mean, and log (real / fake)
    both, is_real = torch.cat([real, fake]), torch.cat([torch.ones(len(real)), torch.zeros(len(fake))])
    order = both.argsort()
    bins = [(both[rows].mean(), is_real[rows].mean()) for rows in order.chunk(n_bins)]
    middle, share = torch.tensor(bins).double().T
    return middle, torch.logit(share)


logits = gans["sngan"].tensors["logits"].float()  # (hinge and refitted, real and draws, n)
curves = {
    name: log_ratio(*logits[i]) for i, name in enumerate(("hinge logit", "refitted logit"))
}
''')
b.fig("fig-15-hinge","TBD","TBD",'''
fig, ax = plt.subplots(figsize=(5.6, 3.6))
for (name, (middle, ratio)), color in zip(curves.items(), plotting.COLORS, strict=False):
    ax.plot(middle, ratio, "o-", color=color, markersize=4)
    ax.text(float(middle[-1]), float(ratio[-1]), f" {name}", color=color, va="center")
low, high = ax.get_xlim()
ax.plot([low, high], [low, high], color=plotting.TRUTH, linewidth=1, linestyle="--")
ax.set(xlabel="logit", ylabel="log ratio of real and drawn", xlim=(low, high * 1.4))
plt.show()
''')
b.checks('''
claim("placeholder", 1.0, at_least=0.5)
''')
b.md(r'''
TBD
''')
b.md(r'''
## How steep is a spectral norm?

If the logit is put into a chain, its slope sets the step.
SNGAN's discriminator promises a slope: it divides each weight matrix by its largest singular value, so that each layer has the Lipschitz constant 1.
That is so for a linear layer.
A convolution has $n_\text{out} \times n_\text{in} \times k \times k$ weights, and what is divided is the norm of the *matrix* $W$ with $n_\text{out}$ rows that they form.
Is that the norm of the convolution?

:::{prf:proposition} The norm of a convolution
:label: prop-15-norm

Let $W$ be that matrix, of a convolution of stride 1 with zero padding at the border, on pictures of at least $k$ by $k$ pixels.
As a linear map of pictures the convolution has a norm $\lVert C \rVert$ with

$$
\lVert W \rVert \le \lVert C \rVert \le k\, \lVert W \rVert .
$$ (eq-15-norm)

The upper bound is approached on large pictures by a kernel with one channel and all weights equal.
:::

:::{prf:proof}
&nbsp;

1. Take a picture that is 0 but for one patch of $k$ by $k$ pixels, which holds the first right singular vector of $W$. Where the kernel lies on that patch the output has the length $\lVert W \rVert$, and elsewhere at least 0.
2. At each place the output is $W$ times a patch of the padded picture, so its squared length is at most $\lVert W \rVert^2$ times that of the patch. Summed over all places each pixel is in at most $k^2$ patches.
3. With $k^2$ weights of $\frac1k$ we have $\lVert W \rVert = 1$. A constant picture is multiplied by $k^2 \cdot \frac1k = k$ wherever the kernel lies within it, and the share of the other places goes to 0. $\square$
:::

So a layer whose weight matrix has norm 1 can be three times as steep for $k = 3$, and $L$ of them up to $3^L$ times.
''')
b.code('''
def norm_of_convolution(weight, side=32, steps=100):  # by power iteration on pictures
    pad, x = weight.shape[-1] // 2, randn(1, weight.shape[1], side, side, generator=rng)
    for _ in range(steps):
        x = x / x.norm()
        y = F.conv2d(x, weight, padding=pad)
        x = F.conv_transpose2d(y, weight, padding=pad)
    return float(y.norm())


rng = seeded(2, "cpu")
convolutions = [
    layer for layer in gans["sngan"].networks["discriminator"].modules()
    if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (3, 3)
]
norms = []
for layer in convolutions:
    weight = layer.weight.detach().float()
    norms.append((torch.linalg.matrix_norm(weight.flatten(1), 2), norm_of_convolution(weight)))
norms = torch.tensor(norms)  # (layers, 2): of the matrix, and of the convolution
constant = torch.full((1, 1, 3, 3), 1 / 3)
''')
b.fig("fig-15-norms","TBD","TBD",'''
fig, ax = plt.subplots(figsize=(5.6, 2.8))
for i, (color, name) in enumerate(((plotting.COLORS[0], "matrix"), (plotting.COLORS[1], "convolution"))):
    ax.plot(range(1, len(norms) + 1), norms[:, i], "o-", color=color)
    ax.text(len(norms) + 0.2, float(norms[-1, i]), name, color=color, va="center")
ax.axhline(3, color="0.6", linewidth=1, linestyle=":")
ax.set(xlabel="convolution of the discriminator", ylabel="norm", ylim=(0, 3.2), xlim=(0.5, len(norms) + 2.5))
plt.show()
''')
b.checks('''
ratio = norms[:, 1] / norms[:, 0]
claim("each convolution is at least as steep as its matrix", ratio.min(), at_least=1 - 1e-4)
claim("and at most three times as steep", ratio.max(), at_most=3)
claim("a constant kernel comes near three", norm_of_convolution(constant), at_least=2.95)
''')
b.md(r'''
TBD

## FID, with its floor

The FID compares the mean and the covariance of features of the samples with those of the data ([chapter 10](10_one_gan_one_budget.ipynb)).
Both are estimated, and an estimated covariance misses the true one in all directions.
So a perfect generator has no FID of 0.

:::{prf:proposition} The bias of an FID
:label: prop-15-bias

Let the features of the samples and of the data both be $\mathcal N(0, \mathbf 1)$ in $k$ dimensions, let the moments of the data be known, and let those of the samples be estimated from $n$ of them.
Then

$$
\mathbb E\, \mathrm{FID}_n = \frac kn + \frac{k (k + 1)}{4 n} + O\big( n^{-\frac32} \big) .
$$ (eq-15-bias)
:::

:::{prf:proof}
Write $\hat m$ and $\hat C = \mathbf 1 + \Delta$ for the estimates.

1. $\mathbb E\, \lvert \hat m \rvert^2 = \frac kn$.
2. $\operatorname{tr} \big( \hat C + \mathbf 1 - 2 \hat C^{1/2} \big) = \operatorname{tr}\, (\hat C^{1/2} - \mathbf 1)^2$, and $\hat C^{1/2} - \mathbf 1 = \frac12 \Delta + O(\Delta^2)$, so it is $\frac14 \operatorname{tr} \Delta^2 + O(\lvert \Delta \rvert^3)$.
3. For normal features and the unbiased $\hat C$, the entries of $\Delta$ have the variance $\frac{1}{n - 1}$ off the diagonal and $\frac{2}{n - 1}$ on it, so $\mathbb E \operatorname{tr} \Delta^2 = \frac{k (k - 1) + 2 k}{n - 1} = \frac{k (k + 1)}{n - 1}$. $\square$
:::

With $k = 2048$ features, as is usual, and $n = 50{,}000$ the floor is about 21 in these units, in which the features have variance 1; for $n = 10{,}000$ it is five times that.
For features of another distribution the constant is another one, and the bias is still of order $\frac1n$.
So an FID is compared only with others of the same $n$, and with that of real images at the same $n$.
Since the bias is nearly a line in $\frac1n$, its value at $\frac1n = 0$ can be extrapolated from several $n$ {cite:p}`chong2020`.
''')
b.md(r'''
{numref}`fig-15-bias` shows the FIDs of our two generators, and of 10,000 training images that the features have not seen, over $\\frac1n$.
''')
b.code('''
sizes = torch.tensor([float(n) for n in facts["sngan"]["fid"]], dtype=torch.float64)
by_n = {name.upper(): facts[name]["fid"] for name in gans}
by_n["real images"] = facts["sngan"]["fid_of_real_images"]
by_n = {name: torch.tensor([*found.values()]).double() for name, found in by_n.items()}
line = torch.stack([torch.ones(len(sizes)), 1 / sizes], dim=1).double()
ends = {name: torch.linalg.lstsq(line, found[:, None]).solution[:, 0] for name, found in by_n.items()}
floor = by_n["real images"][-1]  # at 10,000

k = len(judge.tensors["test_mean"])
normal = randn(10_000, k, generator=seeded(3, "cpu")).double()
moments = torch.zeros(k).double(), torch.eye(k).double()
biases = torch.tensor(
    [
        [metrics.frechet_distance(*metrics.moments(x), *moments) for x in normal.split(n)[:5]]
        for n in (500, 1000, 2000)
    ]
)
predicted = torch.tensor([k / n + k * (k + 1) / (4 * n) for n in (500, 1000, 2000)])
''')
b.fig("fig-15-bias","TBD","TBD",'''
fig, ax = plt.subplots(figsize=(5.6, 3.4))
for (name, found), color in zip(by_n.items(), plotting.COLORS, strict=False):
    a, slope = ends[name]
    ax.plot(1000 / sizes, found, "o", color=color, markersize=4)
    ax.plot([0, 2], [float(a), float(a + slope / 500)], color=color, linewidth=1)
    ax.text(2.05, float(found[0]), name, color=color, va="center")
ax.set(xlabel="1000 / n", ylabel="FID", xlim=(0, 2.7), ylim=(0, None))
plt.show()
''')
b.checks('''
off = (biases.mean(dim=1) / predicted - 1).abs().max()
claim("for normal features the bias is as predicted", off, at_most=0.1)
''')
b.md(r'''
TBD

Do our generators repeat their training images?
TBD
''')
b.fig("fig-15-near","TBD","TBD",'''
near = gans["sngan"].tensors
pair = [near[name].float() / 127.5 - 1 for name in ("drawn", "nearest")]
fig, axes = plt.subplots(2, 1, figsize=(5.6, 2.2))
for ax, images, title in zip(axes, pair, ("draws", "nearest training images"), strict=True):
    plotting.image_grid(ax, images, 8, title)
plt.show()
''')
b.checks('''
claim("placeholder", 1.0, at_least=0.5)
''')
b.md(r'''
TBD

## Samplers at equal passes

TBD
''')
b.code('''
budget = checkpoints.load("one_budget_cifar10")
NAMES = {
    "drs": "rejection", "mh_gan": "MH-GAN", "isir_gan": "i-SIR", "ddls": "MALA",
    "langevin": "Langevin", "dot": "DOT", "dgflow": "DGflow",
}


def score(run, name="fid"):  # of three samplings
    return budget.tensors[f"{run}/{name}"].double()


generator, real = score("none/generator/1"), score("real/data/0")
excess = {"generator": generator - real.mean()}
for which, label in (("refitted", "{}"), ("own", "{}, hinge logit")):
    for sampler, name in NAMES.items():
        if f"{which}/{sampler}/10/fid" in budget.tensors:
            excess[label.format(name)] = score(f"{which}/{sampler}/10") - real.mean()
''')
b.fig("fig-15-budget","TBD","TBD",'''
fig, ax = plt.subplots(figsize=(5.6, 4.2))
rows = {name: metrics.mean_interval(found) for name, found in excess.items()}
plotting.dots(ax, rows, reference=("generator",), label="FID over that of real images")
plt.show()
''')
b.checks('''
claim("placeholder", 1.0, at_least=0.5)
''')
b.md(r'''
TBD

## Why another's FID rose

TBD
''')
b.code('''
chains = checkpoints.load("cifar10_chains")
steps, columns = (chains.card["metrics"][key] for key in ("points", "scores"))
course = {name: dict(zip(columns, found.T, strict=True)) for name, found in chains.tensors.items()}
''')
b.fig("fig-15-chains","TBD","TBD",'''
fig, axes = plt.subplots(2, 1, figsize=(5.6, 6), sharex=True)
for ax, score_name, label in zip(axes, ("fid", "saturation"), ("FID", "black or white (share)"), strict=True):
    for (name, found), color in zip(course.items(), plotting.COLORS, strict=False):
        ax.plot(steps, found[score_name], "o-", color=color, markersize=3)
        ax.text(steps[-1] * 1.02, float(found[score_name][-1]), name, color=color, va="center")
    ax.set(ylabel=label, xlim=(0, steps[-1] * 1.5))
axes[-1].set_xlabel("steps of the chains")
plt.show()
''')
b.checks('''
claim("placeholder", 1.0, at_least=0.5)
''')
b.code('''
pairs = {name: gans["sngan"].gan(name) for name in ("", "refitted")}
start = pairs[""].prior((1, 8), seeded(4, "cpu"))
ends = {"start": start}
for name, energy, temperature in (
    ("hinge logit, noise 0.32", latent_energy(pairs[""]), 10.0),
    ("hinge logit, no prior", lambda z: -pairs[""].logit(z), 1.0),
    ("refitted logit", latent_energy(pairs["refitted"]), 1.0),
):
    kernel = langevin(energy, 0.05, temperature)
    ends[name] = run_chain(kernel, start, STEPS, seeded(5, "cpu")).positions[-1]
with torch.no_grad():
    ends = {name: pairs[""].generator(z)[0] for name, z in ends.items()}
''')
b.fig("fig-15-ends","TBD","TBD",'''
fig, axes = plt.subplots(4, 1, figsize=(5.6, 4.4))
for ax, (name, images) in zip(axes, ends.items(), strict=True):
    plotting.image_grid(ax, images, 8, name)
plt.show()
''')
b.checks('''
claim("placeholder", 1.0, at_least=0.5)
''')
b.md(r'''
TBD

## Larger pictures, on paper

TBD table: ImageNet, LSUN, CelebA.

## What goes wrong

TBD

:::{admonition} What to keep
:class: keep

- TBD
:::

(sec-15-notes)=
## Notes

TBD
''')
b.write('/tmp/w/15_images.ipynb')
