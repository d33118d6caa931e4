import sys; sys.path.insert(0,'/tmp')
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

from gan_ebm_utils import checkpoints, losses, metrics, plotting
from gan_ebm_utils.base import randn, seeded
from gan_ebm_utils.claims import claim

plotting.set_style()
''')
b.code('''
# Change a number and run again.
N = 200  # pictures, in the live experiments
''')
b.md(r'''
## Two GANs of CIFAR-10

TBD picture.

## A hinge logit is no log ratio

SNGAN {cite:p}`miyato2018` trains its discriminator with the *hinge*

$$
\mathcal L_d = \mathbb E_p \max(0, 1 - d(x)) + \mathbb E_{p_g} \max(0, 1 + d(x)) .
$$ (eq-15-hinge)

:::{prf:proposition} What a hinge knows
:label: prop-15-hinge

Let $p$ and $p_g$ have densities.

1. The least $\mathcal L_d$ over all $d$ is reached by $d^*(x) = \operatorname{sign}(p(x) - p_g(x))$, and every best $d$ has this value where it lies between -1 and 1 and $p \ne p_g$. It is $2 - 2\, \mathrm{TV}(p, p_g)$.
2. The distribution that $e^{d^*}$ makes of $p_g$ has $\frac{p_g(x)\, e^{\pm 1}}{Z}$: it weighs all places where $p > p_g$ alike, by $e^2$ against the others.
3. With the loss of the game, $\operatorname{softplus}(-d)$ and $\operatorname{softplus}(d)$, the best $d$ is $\log \frac{p}{p_g}$.
:::

:::{prf:proof}
&nbsp;

1. At a point the loss is $p \max(0, 1 - t) + p_g \max(0, 1 + t)$ for $t = d(x)$. It is piecewise linear with kinks at $\pm 1$, falls with $t$ below $-1$, rises above 1, and has the slope $p_g - p$ between. So the least value is at $t = 1$ if $p > p_g$ and at $t = -1$ if $p < p_g$, and it is $2 \min(p, p_g)$. Its integral is $2 \int \min(p, p_g) = 2 (1 - \mathrm{TV})$.
2. Insert it.
3. [Chapter 01](01_density_ratios.ipynb). $\square$
:::

A logit of 1 says "more likely real"; it does not say how much.
Whoever puts it into $p_0(z)\, e^{d(G(z))}$ samples something, and not the data.
''')
b.md(r'''
## How Lipschitz is a spectral norm?

The discriminator of SNGAN divides each weight matrix by its largest singular value.
For a linear layer this makes it 1-Lipschitz.
A convolution's weights are a tensor of $n_\text{out} \times n_\text{in} \times k \times k$ numbers, and what is divided is the norm of the *matrix* with $n_\text{out}$ rows that they form.
Is that the norm of the convolution?

:::{prf:proposition} The norm of a convolution
:label: prop-15-norm

Let $W$ be the matrix with $n_\text{out}$ rows and $n_\text{in} k^2$ columns of a convolution of stride 1 with zero padding.

1. The convolution's norm as a linear map of pictures is at most $k \lVert W \rVert$.
2. It is at least $\lVert W \rVert$ up to what the border takes, and there are $W$ for which it is $k \lVert W \rVert$ up to the border.
:::

:::{prf:proof}
&nbsp;

1. At each place the output is $W$ times a patch of the picture, so its squared length is at most $\lVert W \rVert^2$ times that of the patch. Summed over all places each pixel is counted in at most $k^2$ patches.
2. TBD $\square$
:::
''')
b.code('''
def norm_of_convolution(weight, side=32, steps=100):  # by power iteration on pictures
    pad, x = weight.shape[-1] // 2, randn(1, weight.shape[1], side, side, generator=rng)
    for _ in range(steps):
        y = F.conv2d(x, weight, padding=pad)
        x = F.conv_transpose2d(y, weight, padding=pad)
        length = x.norm()
        x = x / length
    return float(length.sqrt())


rng = seeded(1, "cpu")
''')
b.md(r'''
## FID, with its floor

TBD

## Samplers at equal passes

TBD

## Why another's FID rose

TBD

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
b.write('/tmp/15_draft.ipynb')
