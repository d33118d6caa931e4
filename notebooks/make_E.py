import json
new=[]
HID={"cellView":"form","collapsed":True,"jupyter":{"outputs_hidden":True,"source_hidden":True}}
def add(kind, text, meta=None):
    c={"cell_type":kind,"id":f"cell-{len(new)+1:03d}","metadata":meta or {},"source":text.strip("\n").splitlines(keepends=True)}
    if kind=="code":
        c["execution_count"]=None; c["outputs"]=[]
    new.append(c)
def md(text): add("markdown", text)
def code(text): add("code", text)
def fig(name, caption, alt, text):
    add("code", text, {"jupyter":{"source_hidden":True},"mystnb":{"figure":{"caption":caption,"name":name},"image":{"alt":alt}},"tags":["hide-input","nbval-ignore-output"]})
def table(text):
    add("code", text, {"jupyter":{"source_hidden":True},"tags":["hide-input","nbval-ignore-output"]})
def fold(title, text):
    add("code", f"# @title {title}\n"+text.strip("\n"), {**HID,"mystnb":{"code_prompt_hide":title,"code_prompt_show":title},"tags":["hide-cell"]})
def checks(text):
    n=text.count("claim(")
    fold(f"✓ {n} check"+("s" if n>1 else ""), text)

md(r'''
# E Stacked MNIST: what a thousand modes measure

You compare losses for a GAN.
One paper reports 150 of 1000 modes on Stacked MNIST, another 959, a third all 1000, and each has a new loss.
Is it the loss that keeps the modes?

:::{admonition} In short
:class: in-short

**Question.** Does the count of modes on Stacked MNIST tell losses apart, or networks and lengths of training?

**Answer.** TBD

**You need.** The losses of [chapter 01](01_density_ratios.ipynb), MEG from [chapter 12](12_meg.ipynb), and refitted discriminators from [chapter 07](07_mh_gan.ipynb) or [08](08_ddls.ipynb).

**Time.** 25 minutes to read, 30 seconds to run on two CPU cores; no GPU is needed.
:::
''')
fold("Set-up", '''
import importlib.util

if importlib.util.find_spec("gan_ebm_utils") is None:
    %pip install -q ..

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from gan_ebm_utils import checkpoints, metrics, plotting
from gan_ebm_utils.base import randn, seeded
from gan_ebm_utils.claims import claim
from gan_ebm_utils.networks import FeatureDiscriminator
from gan_ebm_utils.samplers import independence_mh, run_chain

plotting.set_style()
NAMES = {
    "meg": "MEG",
    "meg_no_entropy": "MEG without its term",
    "wgan_gp": "WGAN-GP",
    "relativistic_r1_r2": "relativistic, R1 + R2",
    "non_saturating_r1": "non-saturating, R1",
    "non_saturating": "non-saturating",
}
KEPT = ("meg", "meg_no_entropy", "relativistic_r1_r2")  # whose networks are stored


def in_a_row(stacks):  # (n, 3, 28, 28) to three digits side by side, with a white frame
    return F.pad(torch.cat(stacks.unbind(dim=1), dim=2), (4, 4, 4, 4), value=-1.0)[:, None]
''')
code('''
# Change a number and run again.
SMOOTH = 7  # side of the window that smooths the noise, in pixels
JUNK = 0.05  # share of noise, beside one mode
N = 26_000  # samples that are counted
N_SHOWN = 12  # stacks in a picture
''')
md(r'''
## Noise with a thousand modes

Three digits of MNIST, drawn independently, are the three channels of one image.
Ten digits to the third power are 1000 combinations, and each counts as a {term}`mode <mode collapse>` {cite:p}`metz2017`.
A classifier reads the channels of each sample.
The score is how many combinations it finds among 26,000 samples, and the KL divergence of their frequencies from the uniform distribution.

A classifier of digits has ten answers, whatever it sees.
So let us give it stacks without any digit: noise, smoothed by a window of 7 by 7 pixels, and about as much ink as digits have.
{numref}`fig-E-noise` shows the three channels side by side.
''')
code('''
def blobs(n, rng):  # smoothed noise, (n, 1, 28, 28)
    noise = randn(n, 1, 28, 28, generator=rng)
    smooth = F.avg_pool2d(noise, SMOOTH, stride=1, padding=SMOOTH // 2)
    return torch.tanh(2 * (smooth / smooth.std(dim=(2, 3), keepdim=True) - 1))


@torch.no_grad()
def read(classifier, images):  # digits (1, n, 3) of images (3 n, 1, 28, 28)
    return torch.cat([classifier(x).argmax(dim=1) for x in images.split(3000)]).view(1, -1, 3)


classifier = checkpoints.load("stacked_classifier").networks["classifier"]
features = checkpoints.load("mnist_features")
digits = features.tensors["check_images"][:, 0].float() / 127.5 - 1
rng = seeded(1, "cpu")
noise = blobs(3 * N, rng)
classes = read(classifier, noise)
of_noise = metrics.stacked_modes(classes)
both = [read(net, noise[:9000]) for net in (classifier, features.networks["classifier"])]
uneven = [(each.flatten().bincount(minlength=10) / 9000).std() for each in both]
''')
fig("fig-E-noise","Twelve stacks of test digits, their three channels side by side, and twelve stacks of smoothed noise. A classifier counts 929 modes among 26,000 of the noise.","Two grids of pictures. Above, rows of four triples of handwritten digits. Below, rows of four triples of black blobs on white.",'''
fig, axes = plt.subplots(2, 1, figsize=(5.6, 4))
rows = torch.randint(len(digits), (N_SHOWN, 3), generator=seeded(2, "cpu"))
plotting.image_grid(axes[0], in_a_row(digits[rows]), 4, "test digits, stacked")
plotting.image_grid(axes[1], in_a_row(noise[: 3 * N_SHOWN].view(-1, 3, 28, 28)), 4, "noise")
plt.show()
''')
table('''
plotting.table(
    {
        "smoothed noise": {"modes": f"{int(of_noise.modes)}", "KL": f"{float(of_noise.kl):.2f}"},
        "VEEGAN, published": {"modes": "150", "KL": "2.95"},
        "WGAN-GP, published": {"modes": "959", "KL": "0.73"},
        "PacGAN, published": {"modes": "1000", "KL": "0.06"},
        "MEG, published": {"modes": "1000", "KL": "0.031"},
    },
    reference=("smoothed noise",),
)
''')
checks('''
claim("noise has more than 900 modes", of_noise.modes, at_least=900)
claim("its KL is 0.86", abs(of_noise.kl - 0.86), at_most=0.03)
claim("a second classifier sees more even digits", uneven[0] - uneven[1], at_least=0)
''')
md(r'''
Noise has nearly as many modes as WGAN-GP's published row, and nearly its divergence.
(The window is our choice; of twelve settings that we tried the divergences were between 0.44 and 1.6.
By a second classifier, trained apart, their digits are a little more even.)
So neither number says that a sample is a digit.
What do they say?

## What is counted

:::{prf:proposition} Counts of modes
:label: prop-E-count

Let $n$ samples fall independently into $K$ modes with the probabilities $p_1, \dots, p_K$, and let $\hat p$ be their frequencies and $u = \frac1K$.

1. The expected number of modes that are found is $\sum_k \big( 1 - (1 - p_k)^n \big)$.
2. $\mathbb E\, \mathrm{KL}(\hat p \,\|\, u) \ge \mathrm{KL}(p \,\|\, u)$, and over all $p$ it is least for $p = u$.
3. For $p = u$ and $K \le n$ it is $\frac{K - 1}{2 n}$ up to $O\big( (\frac Kn)^2 \big)$.
4. If the modes are triples $(a, b, c)$ of digits, $\mathrm{KL}(p \,\|\, u)$ is the sum of the divergences of the three distributions of one digit from the uniform one, and of $T(p) = \mathrm{KL}\big( p \,\|\, p_a\, p_b\, p_c \big) \ge 0$, their *total correlation*.
:::

:::{prf:proof}
&nbsp;

1. Mode $k$ is missed by all samples with probability $(1 - p_k)^n$.
2. $\mathrm{KL}(\cdot \,\|\, u)$ is convex and $\mathbb E\, \hat p = p$: Jensen's inequality. The mean is $\log K + \sum_k B(p_k)$ with $B(p) = \mathbb E\, \varphi(N / n)$, $\varphi(t) = t \log t$ and $N$ binomial with $n$ draws and probability $p$. That is the Bernstein polynomial of a convex function, and so convex; with $\sum_k p_k = 1$ the sum is least if all $p_k$ are equal.
3. With $\hat p_k = u (1 + \delta_k)$ the divergence is $\frac1K \sum_k (1 + \delta_k) \log (1 + \delta_k)$, and for $\delta \ge -1$ a summand differs from $\delta + \frac{\delta^2}2 - \frac{\delta^3}6$ by at most $\frac{\delta^4}3$. The $\delta_k$ sum to 0, $\mathbb E\, \delta_k^2 = \frac{1 - u}{n u} = \frac{K - 1}{n}$, and both $\mathbb E\, \delta_k^3$ and $\mathbb E\, \delta_k^4$ are $O\big( (\frac Kn)^2 \big)$.
4. $\log \frac{p(a, b, c)}{u} = \log \frac{p(a, b, c)}{p_a p_b p_c} + \log \frac{p_a}{1/10} + \log \frac{p_b}{1/10} + \log \frac{p_c}{1/10}$; take the mean under $p$. $\square$
:::

A mode needs a single sample.
So rare modes count as much as frequent ones, and a little junk is enough: take a generator that always draws 000, and 5 % of whose samples are noise.
By item 1 it has as many modes as the second row of the table says.

And the mean divergence has a *floor* that depends on the number of samples: 0.0193 at 26,000, the exact sum of item 2.
A perfect model of MNIST has 0.0236 on average, since its digits are not equally frequent.
The best published values are 0.031 {cite:p}`kumar2019` and 0.029 {cite:p}`huang2024`, less than 0.01 above it: at this score there is little left to win.
''')
code('''
def expected_modes(p, n):  # item 1, of probabilities p of the modes
    return float((1 - (1 - p) ** n).sum())


def of_one_mode(q, p):  # 000 with probability 1 - q, else junk that is read as p says
    return (1 - q) * F.one_hot(torch.tensor(0), 1000) + q * p


shares = classes.flatten().bincount(minlength=10).double() / classes.numel()
p = torch.einsum("i,j,k->ijk", shares, shares, shares).flatten()  # of noise: independent channels
is_junk = torch.rand(1, N, 1, generator=rng) < JUNK
collapsed = metrics.stacked_modes(classes * is_junk)
uniform = torch.full((1000,), 1e-3)
floors = {n: metrics.kl_floor(n, uniform) for n in (2_560, 26_000)}
scores = checkpoints.load("stacked_mnist")
floor = scores.card["metrics"]["kl_floor"]["26000"]["digits_of_mnist"]
''')
table('''
plotting.table(
    {
        "noise": {
            "modes": f"{int(of_noise.modes)}",
            "item 1": f"{expected_modes(p, N):.0f}",
            "KL": f"{float(of_noise.kl):.2f}",
        },
        f"000, and {100 * JUNK:.0f} % noise": {
            "modes": f"{int(collapsed.modes)}",
            "item 1": f"{expected_modes(of_one_mode(JUNK, p), N):.0f}",
            "KL": f"{float(collapsed.kl):.2f}",
        },
        "MNIST's digits, on average": {"modes": "1000", "item 1": "1000", "KL": f"{floor:.3f}"},
    },
    reference=("MNIST's digits, on average",),
)
''')
checks('''
claim("the floor at 26,000 samples is 0.0193", abs(floors[26_000] - 0.0193), at_most=0.0001)
claim("a model of MNIST has 0.0236", abs(floor - 0.0236), at_most=0.0001)
claim("at 2,560 samples the floor is 0.217", abs(floors[2_560] - 0.217), at_most=0.001)
off = abs(of_noise.modes - expected_modes(p, N))
claim("noise has as many modes as item 1 says", off, at_most=30)
off = abs(collapsed.modes - expected_modes(of_one_mode(JUNK, p), N))
claim("so has one mode with junk", off, at_most=60)
claim("one mode with 5 % noise has about 456", abs(collapsed.modes - 456), at_most=60)
claim("its KL is 6.4", (collapsed.kl - 6.4).abs(), at_most=0.1)
''')
md(r'''
One mode with 5 % noise counts about 456, as item 1 says.
The divergence is not deceived by that: it is 6.4 nats, of at most 6.9.
But noise deceives both.
A count that rises may mean that the samples get worse.

## A thousand modes are ten, three times

The last item of {prf:ref}`prop-E-count` says where a divergence comes from.
A generator that has all digits in each channel, and has lost some of their *combinations*, has a total correlation: given two digits one knows something of the third.
A generator whose *digits* are bad, so that the classifier reads too many of them as a 2, has three histograms that are not flat.
Only the first needs stacks of three; the second is seen on single digits.
(At 26,000 samples nearly all of the floor, 0.0187, is in the total correlation.)
{numref}`fig-E-split` splits the divergences of noise and of eight GANs, which the next sections introduce.
''')
code('''
trainings, columns = scores.card["metrics"]["trainings"], scores.card["metrics"]["course"]
LAST, AVERAGED = 0, 1  # weights of the generator


def kl_from_uniform(p):
    return float(torch.special.xlogy(p, p * p.numel()).sum())


def split(counts):  # KL of frequencies (10, 10, 10): that of the three digits, and the rest
    p = counts.double() / counts.sum()
    of_digits = sum(kl_from_uniform(p.sum(dim=axes)) for axes in ((0, 1), (0, 2), (1, 2)))
    return of_digits, kl_from_uniform(p) - of_digits


place = (classes[0] * torch.tensor([100, 10, 1])).sum(dim=1)
parts = {"noise": split(place.bincount(minlength=1000).view(10, 10, 10))}
for name in trainings:
    parts[name] = split(scores.tensors[f"{name}/counts"][AVERAGED])
''')
fig("fig-E-split","The KL divergence of noise and of eight GANs from the uniform distribution of modes: that of the three histograms of digits, and the total correlation, which is the dependence of the channels. Nearly all of it is in the digits.","Horizontal bars, each in two colours. The part of the digits makes up most of every bar; the other part is a thin end of the same length in all.",'''
shown = ["noise", *(f"{loss}-0" for loss in NAMES), *(f"{loss}-long" for loss in KEPT)]
fig, ax = plt.subplots(figsize=(5.6, 4))
for place, name in enumerate(shown):
    of_digits, rest = parts[name]
    ax.barh(place, of_digits, color=plotting.COLORS[0])
    ax.barh(place, rest, left=of_digits, color=plotting.COLORS[1])
labels = [NAMES.get(name.rpartition("-")[0], name) + ", longer" * name.endswith("long") for name in shown]
ax.set(yticks=range(len(shown)), yticklabels=labels, xlabel="KL from uniform (nats)")
ax.invert_yaxis()
ax.text(0.98, 0.12, "digits", color=plotting.COLORS[0], transform=ax.transAxes, ha="right")
ax.text(0.98, 0.04, "dependence", color=plotting.COLORS[1], transform=ax.transAxes, ha="right")
plt.show()
''')
checks('''
rest = torch.tensor([dependence for _, dependence in parts.values()])
claim("in no training is the dependence far above its floor of 0.0187", rest.max(), at_most=0.05)
claim("noise has no dependence beyond it", abs(parts["noise"][1] - 0.0187), at_most=0.02)
''')
md(r'''
TBD
No training loses combinations: what differs are the digits.
For a loss that is said to keep modes this benchmark is a test of single digits, with three times as many of them.

## Six losses in the same clothes

If losses are compared, all else should be equal, as far as it can be.
The {term}`recipe` `stacked_mnist` trains each loss with the same generator, the same discriminator and the same batches: plain convolutions, no residuals, no norm in the discriminator.

- *Non-saturating*, without a penalty and with R1.
- *WGAN-GP*, and *MEG*, whose discriminator is an energy; both with five steps of the discriminator for one of the generator.
- *MEG without its term*, the same game without the information.
- *Relativistic, R1 + R2*, where the discriminator compares a real with a generated sample {cite:p}`huang2024`.

There are three short trainings of MEG, of MEG without its term and of the relativistic loss, one of each other, and a longer one of each loss.
Each loss has its own coefficients of Adam, and MEG has a third network for the information.
A loss with five steps of the discriminator gets a third of the generator's steps, which takes about as long: 400 instead of 1,200, with batches of 64.
That is about ten minutes of one CPU core; the longer trainings have ten times the steps.
The learning rate falls to 0 in each, so that a short training is no prefix of a longer one.
''')
code('''
def score(name, key="kl", which=AVERAGED):  # of 26,000 samples
    return float(scores.tensors[f"{name}/{key}"][which].mean())


short = {
    loss: [score(f"{loss}-{i}") for i in range(3) if f"{loss}-{i}" in trainings] for loss in NAMES
}
longer = {loss: score(f"{loss}-long") for loss in NAMES}
''')
fig("fig-E-losses","TBD","TBD",'''
fig, ax = plt.subplots(figsize=(5.6, 3.4))
for place, loss in enumerate(NAMES):
    ax.plot(short[loss], [place] * len(short[loss]), "o", color=plotting.FAKE, alpha=0.7)
    ax.plot(longer[loss], place, "o", color=plotting.REAL)
ax.text(short["meg"][0], -0.35, "10 minutes", color=plotting.FAKE, ha="center")
ax.text(longer["meg"], -0.35, "100 minutes", color=plotting.REAL, ha="center")
ax.axvline(floor, color=plotting.TRUTH, linewidth=1, linestyle="--")
ax.set(yticks=range(len(NAMES)), yticklabels=NAMES.values(), xscale="log", ylim=(5.6, -0.8))
ax.set_xlabel("KL from uniform (nats)")
plt.show()
''')
checks('''
claim("placeholder", 1.0, at_least=0.5)
''')
md(r'''
TBD

## Wider, or longer

TBD
''')
code('''
def course(name):  # of a training: the name of a column to its values
    return dict(zip(columns, scores.tensors[f"{name}/course"].T, strict=True))


def passes(name):  # rows through a network, forward or backward, in millions, at each count
    return course(name)["step"] * sum(trainings[name]["calls"]) / 1e6


WIDTHS = {"8": "-0-narrow4", "16": "-0-narrow2", "32": "-0"}
by_width = {
    loss: {width: score(f"{loss}{tail}") for width, tail in WIDTHS.items()}
    for loss in ("meg", "relativistic_r1_r2")
}
''')
fig("fig-E-course","TBD","TBD",'''
fig, axes = plt.subplots(2, 1, figsize=(5.6, 5.2), sharey=True)
for loss, color in zip(KEPT, plotting.COLORS, strict=False):
    found = course(f"{loss}-long")
    for ax, x in zip(axes, (found["step"], passes(f"{loss}-long")), strict=True):
        ax.plot(x, found["kl"], "o-", color=color, markersize=3)
        ax.text(float(x[-1]) * 1.02, float(found["kl"][-1]), NAMES[loss], color=color, va="center")
for ax, label in zip(axes, ("steps of the generator", "millions of passes"), strict=True):
    ax.set(xlabel=label, ylabel="KL (nats)", xlim=(0, ax.get_xlim()[1] * 1.35), ylim=(0, None))
plt.show()
''')
fig("fig-E-width","TBD","TBD",'''
fig, ax = plt.subplots(figsize=(5.6, 3))
for (loss, found), color in zip(by_width.items(), plotting.COLORS[:2], strict=True):
    ax.plot(range(len(WIDTHS)), found.values(), "o-", color=color)
    ax.text(len(WIDTHS) - 0.9, found["32"], NAMES[loss], color=color, va="center")
ax.axhline(floor, color=plotting.TRUTH, linewidth=1, linestyle="--")
ax.set(xticks=range(len(WIDTHS)), xticklabels=WIDTHS, xlim=(-0.3, len(WIDTHS) + 0.7), ylim=(0, None))
ax.set(xlabel="width of the discriminator", ylabel="KL from uniform (nats)")
plt.show()
''')
checks('''
claim("placeholder", 1.0, at_least=0.5)
''')
md(r'''
TBD

## What a refitted discriminator adds

TBD
''')
code('''
SAMPLERS = {"none": "as drawn", "mh": "MH-GAN", "ddls": "DDLS"}


def of_classes(loss, sampler):  # modes and KL of 6,000 samples, and the KL's bootstrap deviation
    found = refined.tensors[f"{loss}/{sampler}/classes"].long()
    rows = torch.randint(len(found), (30, len(found)), generator=seeded(5, "cpu"))
    again = metrics.stacked_modes(found[rows]).kl
    modes, kl = metrics.stacked_modes(found[None])
    return int(modes), float(kl), float(again.std())


after = {loss: {name: of_classes(loss, name) for name in SAMPLERS} for loss in KEPT}
fids = {
    loss: {name: refined.card["metrics"][loss][name]["fid"] for name in SAMPLERS} for loss in KEPT
}
''')
table('''
plotting.table(
    {
        f"{NAMES[loss]}, {label}": {
            "modes": f"{after[loss][name][0]}",
            "KL": f"{after[loss][name][1]:.2f}",
            "FID": f"{fids[loss][name]:.0f}",
            "calls for a sample": f"{sum(refined.card['metrics'][loss][name]['calls']):.0f}",
        }
        for loss in KEPT
        for name, label in SAMPLERS.items()
        if loss != "meg_no_entropy"
    }
)
''')
code('''
rng = seeded(6, "cpu")
judge = FeatureDiscriminator((256, 256), channels=3, generator=rng)
judge.features = checkpoints.load("mnist_gan").networks["discriminator_refitted"].features
judge.head = refined.networks["head_meg"]
gan = pairs["meg"]._replace(discriminator=judge.requires_grad_(False))
start = gan.prior((1, N_SHOWN), rng)
kernel = independence_mh(gan.logit, gan.prior)
chain = run_chain(kernel, start, 16, rng, thin=16)
with torch.no_grad():
    before, then = gan.generator(start)[0], gan.generator(chain.positions[-1])[0]
''')
fig("fig-E-refined","TBD","TBD",'''
fig, axes = plt.subplots(2, 1, figsize=(5.6, 5.4))
plotting.image_grid(axes[0], in_a_row(before), 4, "draws of MEG")
plotting.image_grid(axes[1], in_a_row(then), 4, "after 16 proposals")
plt.show()
''')
checks('''
claim("placeholder", 1.0, at_least=0.5)
''')
md(r'''
TBD

:::{admonition} What to keep
:class: keep

- A count of modes rises with junk. Read the divergence beside it, and the pictures.
- The divergence has a floor that depends on the number of samples, about $\frac{K - 1}{2n}$: 0.0193 for 26,000, and 0.0236 for a perfect model of MNIST.
- It splits into the divergences of three histograms of digits and a total correlation. Only the last is about combinations.
- TBD: lengths and losses

**The pitfall.** Putting one's own training of a hundred minutes beside another's published number, and calling the difference the loss.
:::

## Exercises

:::{exercise}
:label: ex-E-floor

Five minutes.
A paper counts 2,560 samples, another 26,000.
Which floors have their divergences?
:::

:::{solution} ex-E-floor
:class: dropdown

$\frac{999}{2 \cdot 2560} = 0.195$ and $\frac{999}{52000} = 0.0192$, by item 3 of {prf:ref}`prop-E-count`; the exact values are 0.217 and 0.0193.
With 2,560 samples 0.217 is the score of a perfect generator, with 26,000 that of a poor one.
:::

:::{exercise}
:label: ex-E-missing

Five minutes.
A generator draws 800 of the modes equally often and the other 200 never.
What is the divergence of its distribution, and what is that of a generator that draws all, 200 of them half as often as the others?
:::

:::{solution} ex-E-missing
:class: dropdown

$\log \frac{1000}{800} = 0.223$.
In the second, $p = \frac{1}{900}$ for 800 modes and $\frac{1}{1800}$ for 200: $\frac{8}{9} \log \frac{10}{9} + \frac19 \log \frac59 = 0.0283$.
So one that has lost 20 % of all modes has 3 % of the largest value, 6.9.
:::

:::{exercise}
:label: ex-E-equal

A generator draws perfect digits, each equally often, but its three channels always show the same one.
How many modes has it, what is its divergence, and how does it split?
:::

:::{solution} ex-E-equal
:class: dropdown

Ten modes; $\log \frac{1000}{10} = 4.61$.
The histograms of digits are flat, so all of it is total correlation.
:::

:::{exercise}
:label: ex-E-pairs

Write down a distribution of triples with flat histograms of digits, of which each *pair* of digits is independent, and that has a total correlation of 2.3 nats.
Would a discriminator that sees two channels at a time find it?
:::

:::{solution} ex-E-pairs
:class: dropdown

Draw $a$ and $b$ uniformly and independently, and let $c = a + b \bmod 10$.
Every pair is uniform on 100 values, and the triple on 100 of 1000: $\log 10 = 2.30$.
No function of two channels tells it from the data.
:::

:::{exercise}
:label: ex-E-code

How many "modes" has a generator of one mode with 1 % junk, if $n$ grows from 1,000 to a million?
Draw the curve, and the divergence beside it.
:::

:::{solution-start} ex-E-code
:class: dropdown
:::
''')
add("code",'''
for n in (1_000, 10_000, 100_000, 1_000_000):
    rare = of_one_mode(0.01, uniform)
    modes, kl = expected_modes(rare, n), kl_from_uniform(rare)
    print(f"{n:9,} samples: {modes:4.0f} modes, KL {kl:.2f}")
''')
checks('''
claim("at a million samples 1 % of junk has all modes", modes, at_least=999)
''')
md(r'''
:::{solution-end}
:::

(sec-E-notes)=
## Notes

- Stacked MNIST is due to {cite:t}`metz2017`. The published rows are those of the table of {cite:t}`kumar2019`, which for other methods repeats earlier papers; the one of the relativistic loss with both penalties is {cite:t}`huang2024`, with 20.7 million weights in a network.
- The protocol here: stacks of training digits only; 26,000 samples; a classifier in evaluation mode with 99.3 % of the test digits right, and a second one, trained apart, whose scores are on the card. Stacks of test digits have a divergence of 0.025. A classifier whose dropout is left on counts modes of its own ([appendix A](A_errors_in_circulation.ipynb), section A.6).
- Our networks are half as wide as those that the recipe has for a GPU (`--full`), and were trained on CPU cores; averaged weights have a half-life of some hundred steps, and the last iterate scores alike.
- The exact floors are sums over binomial distributions, `metrics.kl_floor`; Miller's correction $\\frac{K - 1}{2n}$ is their first term.
''')
nb={"cells":new,"metadata":{"kernelspec":{"display_name":"Python 3","language":"python","name":"python3"},"language_info":{"name":"python"}},"nbformat":4,"nbformat_minor":5}
open('/work/main/notebooks/E_stacked_mnist.ipynb','w').write(json.dumps(nb,indent=1,ensure_ascii=False)+"\n")
