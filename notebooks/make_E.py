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

import math

import matplotlib.pyplot as plt
import torch

from gan_ebm_utils import checkpoints, metrics, plotting
from gan_ebm_utils.base import rand, seeded
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


def in_a_row(stacks):  # (n, 3, 28, 28) to three digits side by side
    return torch.cat(stacks.unbind(dim=1), dim=2)[:, None]
''')
code('''
# Change a number and run again.
JUNK = 0.05  # share of junk, in the first experiment
N = 26_000  # samples that are counted
N_SHOWN = 24  # stacks in a picture
''')
md(r'''
## Three digits, one picture

Three digits of MNIST, drawn independently, are the three channels of one image.
Ten digits to the third power are 1000 combinations, and each counts as a {term}`mode <mode collapse>` {cite:p}`metz2017`.
A classifier reads the channels of each sample.
The score is how many combinations it finds among 26,000 samples, and the KL divergence of their frequencies from the uniform distribution.
{numref}`fig-E-stacks` shows draws of TBD that we trained, with the channels side by side.
''')
code('''
scores = checkpoints.load("stacked_mnist")
refined = checkpoints.load("stacked_refined")
pairs = {loss: checkpoints.load(f"stacked_mnist_{loss}").gan() for loss in KEPT}
known = checkpoints.load("mnist_features").tensors["check_images"][:, 0].float() / 127.5 - 1
rng = seeded(1, "cpu")
rows = torch.randint(len(known), (N_SHOWN, 3), generator=rng)
with torch.no_grad():
    drawn = pairs["relativistic_r1_r2"].generator(
        pairs["relativistic_r1_r2"].prior((1, N_SHOWN), rng)
    )[0]
''')
fig("fig-E-stacks","TBD","TBD",'''
fig, axes = plt.subplots(2, 1, figsize=(5.6, 5.4))
plotting.image_grid(axes[0], in_a_row(known[rows]), 4, "test digits, stacked")
plotting.image_grid(axes[1], in_a_row(drawn), 4, "draws")
plt.show()
''')
md(r'''
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

So the mean divergence has a *floor* that depends on the number of samples: 0.0193 at 26,000, the exact sum of item 2.
A perfect model of MNIST has 0.0236 on average, since its digits are not equally frequent.
Published records are 0.031 {cite:p}`kumar2019` and 0.029 {cite:p}`huang2024`, less than 0.01 above it: at this score there is little left to win.

And a mode needs a single sample.
Take a generator that has collapsed to one mode, and of whose samples a share $q$ is junk that the classifier reads as any combination.
''')
code('''
def expected_modes(q, n, K=1000):  # of the proposition, for one mode and a share q of junk
    one, other = 1 - q + q / K, q / K
    return 1 - (1 - one) ** n + (K - 1) * (1 - (1 - other) ** n)


def divergence(q, K=1000):  # of its frequencies from the uniform distribution
    one, other = 1 - q + q / K, q / K
    return one * math.log(K * one) + (K - 1) * other * math.log(K * other)


rng = seeded(2, "cpu")
is_junk = rand(10, N, 1, generator=rng) < JUNK
classes = torch.randint(10, (10, N, 3), generator=rng) * is_junk  # the one mode is 000
counted = metrics.stacked_modes(classes)
floors = {str(n): metrics.kl_floor(n, torch.full((1000,), 1e-3)) for n in (2_560, 26_000)}
floor = scores.card["metrics"]["kl_floor"]["26000"]["digits_of_mnist"]
''')
table('''
plotting.table(
    {
        f"one mode and {100 * q:.0f} % junk": {
            "modes": f"{expected_modes(q, N):.0f}",
            "KL": f"{divergence(q):.2f}",
        }
        for q in (0.01, 0.05, 0.2)
    }
    | {"MNIST's digits": {"modes": "1000", "KL": f"{floor:.3f}"}},
    reference=("MNIST's digits",),
)
''')
checks('''
claim("the floor at 26,000 samples is 0.0193", abs(floors["26000"] - 0.0193), at_most=0.0001)
claim("a model of MNIST has 0.0236", abs(floor - 0.0236), at_most=0.0001)
claim("at 2,560 samples the floor is 0.217", abs(floors["2560"] - 0.217), at_most=0.001)
off = (counted.modes.double().mean() - expected_modes(JUNK, N)).abs()
claim("one mode and junk: as many modes as the proposition says", off, at_most=25)
claim("one mode with 5 % junk counts 728", abs(expected_modes(0.05, 26_000) - 728), at_most=0.5)
claim("its KL is 6.4", (counted.kl.double().mean() - 6.4).abs(), at_most=0.1)
''')
md(r'''
A single mode with 5 % junk has 728 "modes".
The divergence is not deceived: it is 6.4 nats, of at most 6.9.
So a count without its divergence says little, and a count that rises may mean that the samples get worse.

## A thousand modes are ten, three times

The last item of {prf:ref}`prop-E-count` says where a divergence comes from.
A generator that has all digits in each channel, and has lost some of their *combinations*, has a total correlation: given two digits one knows something of the third.
A generator whose *digits* are bad, so that the classifier reads too many of them as an 8, has three histograms that are not flat.
Only the first needs stacks of three; the second is seen on single digits.
(At 26,000 samples nearly all of the floor, 0.0187, is in the total correlation.)
{numref}`fig-E-split` splits the divergence of each of our trainings.
''')
code('''
trainings, columns = scores.card["metrics"]["trainings"], scores.card["metrics"]["course"]
LAST, AVERAGED = 0, 1  # weights of the generator


def kl_from_uniform(p):
    return float(torch.special.xlogy(p, p * p.numel()).sum())


def split(name, which=AVERAGED):  # KL of a training: that of its three digits, and the rest
    counts = scores.tensors[f"{name}/counts"][which].double()
    p = counts / counts.sum()
    of_digits = sum(kl_from_uniform(p.sum(dim=axes)) for axes in ((0, 1), (0, 2), (1, 2)))
    return of_digits, kl_from_uniform(p) - of_digits


parts = {name: split(name) for name in trainings}
''')
fig("fig-E-split","TBD","TBD",'''
shown = [f"{loss}-0" for loss in NAMES] + [f"{loss}-long" for loss in KEPT]
fig, ax = plt.subplots(figsize=(5.6, 3.6))
for place, name in enumerate(shown):
    of_digits, rest = parts[name]
    ax.barh(place, of_digits, color=plotting.COLORS[0])
    ax.barh(place, rest, left=of_digits, color=plotting.COLORS[1])
labels = [NAMES[name.rpartition("-")[0]] + ", wide" * name.endswith("long") for name in shown]
ax.set(yticks=range(len(shown)), yticklabels=labels, xlabel="KL from uniform (nats)")
ax.invert_yaxis()
ax.text(0.98, 0.62, "digits", color=plotting.COLORS[0], transform=ax.transAxes, ha="right")
ax.text(0.98, 0.54, "dependence", color=plotting.COLORS[1], transform=ax.transAxes, ha="right")
plt.show()
''')
checks('''
claim("placeholder", 1.0, at_least=0.5)
''')
md(r'''
TBD

## Six losses in the same clothes

If losses are compared, all else should be equal, as far as it can be.
The {term}`recipe` `stacked_mnist` trains each loss with the same generator, the same discriminator and the same batches: plain convolutions, no residuals, no norm in the discriminator.

- *Non-saturating*, without a penalty and with R1.
- *WGAN-GP*, and *MEG*, whose discriminator is an energy; both with five steps of the discriminator for one of the generator.
- *MEG without its term*, the same game without the information.
- *Relativistic, R1 + R2*, where the discriminator compares a real with a generated sample {cite:p}`huang2024`.

There are three trainings of MEG, of MEG without its term and of the relativistic loss, and one of each other.
Each loss has its own coefficients of Adam, and MEG has a third network for the information.
A loss with five steps of the discriminator gets a third of the generator's steps, which takes about as long: 800 instead of 2,400, with batches of 64.
The learning rate falls to 0, and the scores are those at the end.
''')
code('''
def score(name, key="kl", which=AVERAGED):  # of 26,000 samples
    return float(scores.tensors[f"{name}/{key}"][which].mean())


seeds = {loss: [k for k in trainings if k.rpartition("-")[0] == loss and k[-1].isdigit() and "narrow" not in k] for loss in NAMES}
''')
fig("fig-E-losses","TBD","TBD",'''
fig, ax = plt.subplots(figsize=(5.6, 3))
for place, loss in enumerate(NAMES):
    found = [score(name) for name in seeds[loss]]
    ax.plot(found, [place] * len(found), "o", color=plotting.COLORS[0], alpha=0.7)
ax.axvline(floor, color=plotting.TRUTH, linewidth=1, linestyle="--")
ax.set(yticks=range(len(NAMES)), yticklabels=NAMES.values(), xlim=(0, None))
ax.set_xlabel("KL from uniform (nats), after about equal time")
ax.invert_yaxis()
plt.show()
''')
checks('''
claim("placeholder", 1.0, at_least=0.5)
''')
md(r'''
TBD

## Wider, longer, or another loss

TBD
''')
code('''
def course(name):  # of a training: the name of a column to its values
    return dict(zip(columns, scores.tensors[f"{name}/course"].T, strict=True))


def passes(name):  # rows through a network, forward or backward, in millions, at each count
    return course(name)["step"] * sum(trainings[name]["calls"]) / 1e6


WIDTHS = {"8": "-0-narrow4", "16": "-0-narrow2", "32": "-0", "32, longer": "-long"}
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
    ax.text(len(WIDTHS) - 0.9, found["32, longer"], NAMES[loss], color=color, va="center")
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
- TBD

**The pitfall.** TBD
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
    print(f"{n:9,} samples: {expected_modes(0.01, n):4.0f} modes, KL {divergence(0.01):.2f}")
''')
checks('''
claim("at a million samples 1 % of junk has all modes", expected_modes(0.01, 10**6), at_least=999)
''')
md(r'''
:::{solution-end}
:::

(sec-E-notes)=
## Notes

TBD
''')
nb={"cells":new,"metadata":{"kernelspec":{"display_name":"Python 3","language":"python","name":"python3"},"language_info":{"name":"python"}},"nbformat":4,"nbformat_minor":5}
open('/work/main/notebooks/E_stacked_mnist.ipynb','w').write(json.dumps(nb,indent=1,ensure_ascii=False)+"\n")
