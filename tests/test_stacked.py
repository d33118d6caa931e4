"""Stacked MNIST: its stacks, the count of its modes, the paired loss, and the recipe."""

import copy
import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gan_ebm_utils import checkpoints, losses, metrics, runs
from gan_ebm_utils.base import randn, seeded
from gan_ebm_utils.datasets import Images, minibatches, stacked_digits
from gan_ebm_utils.energies import NegativeEnergy
from gan_ebm_utils.networks import digit_classifier, stack_discriminator, stack_generator
from gan_ebm_utils.recipes import stacked_mnist
from gan_ebm_utils.recipes.stacked_mnist import LOSSES, Game, Training

SIZES = {
    "width_g": 4,
    "width_d": 2,
    "width_t": 2,
    "latent_dim": 5,
    "batch_size": 6,
    "steps": 4,
    "learning_rate": 2e-4,
    "decay": 0.9,
}


def rng(seed=0):
    return seeded(seed, "cpu")


def pictures(n=20):
    return 2 * torch.rand(n, 1, 28, 28, generator=rng(3)) - 1


def game(loss="meg", seed=0, n_steps=1000, **changes):
    return Game(LOSSES[loss], {**SIZES, **changes}, stacked_digits(pictures()), n_steps, seed)


# ---- stacks, modes and floors


def test_a_stack_is_three_digits_drawn_alone():
    images = torch.arange(7.0)[:, None, None, None].expand(7, 1, 2, 3)
    stacks = stacked_digits(images)((2, 5000), rng())
    assert stacks.shape == (2, 5000, 3, 2, 3)
    drawn = stacks[..., 0, 0].long()
    assert (stacks == drawn[..., None, None]).all(), "a channel is one digit"
    counts = (drawn @ torch.tensor([1, 7, 49])).flatten().bincount(minlength=343)
    expected = 10_000 / 343
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 342) < 5 * math.sqrt(2 * 342)
    # A control: three channels of the same digit.
    same = drawn[..., :1].expand(-1, -1, 3) @ torch.tensor([1, 7, 49])
    counts = same.flatten().bincount(minlength=343)
    assert ((counts - expected) ** 2 / expected).sum() > 10_000


def test_stacks_are_made_of_one_channel():
    with pytest.raises(ValueError, match=r"images must be \(n, 1, h, w\).*\(5, 3, 4, 4\)"):
        stacked_digits(torch.zeros(5, 3, 4, 4))
    assert minibatches(torch.zeros(5, 3, 4, 4))((2,), rng()).shape == (2, 3, 4, 4)


def test_modes_and_kl_by_hand():
    every = torch.tensor(list(itertools.product(range(10), repeat=3)))[None]
    assert metrics.stacked_modes(every) == (torch.tensor([1000.0]), torch.tensor([0.0]))
    half = torch.cat([every[:, :500], every[:, :500], every[:, :500]], dim=1)
    modes, kl = metrics.stacked_modes(half)
    assert modes == 500 and kl == pytest.approx(math.log(2))
    one = metrics.stacked_modes(torch.full((1, 9, 3), 7))
    assert one.modes == 1 and one.kl == pytest.approx(math.log(1000))
    # Shares 1/2, 1/4, 1/4 of the four modes of two classes.
    both = torch.tensor([[[0, 0], [0, 0], [0, 1], [1, 1]], [[1, 1]] * 4])
    modes, kl = metrics.stacked_modes(both, n_classes=2)
    assert modes.tolist() == [3, 1]
    assert kl.tolist() == pytest.approx([math.log(4) - 1.5 * math.log(2), math.log(4)])
    # Channels are not interchangeable.
    assert metrics.stacked_modes(torch.tensor([[[1, 2, 3], [3, 2, 1]]])).modes == 2


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (torch.zeros(1, 5, 3), "give the argmax"),
        (torch.zeros(5, 3, dtype=torch.long), r"classes must be \(R, n, channels\)"),
        (torch.full((1, 5, 3), 10), r"0\.\.9, got 10 to 10"),
        (torch.full((1, 5, 3), -1), r"0\.\.9, got -1 to -1"),
        (torch.zeros(1, 0, 3, dtype=torch.long), "whole numbers"),
    ],
)
def test_what_are_no_classes(classes, told):
    with pytest.raises(ValueError, match=told):
        metrics.stacked_modes(classes)


def test_the_floor_is_the_mean_of_the_kl():
    p = torch.tensor([0.5, 0.2, 0.2, 0.1])
    n, draws = 20, 4000
    found = torch.multinomial(p.expand(draws, 4), n, replacement=True, generator=rng())
    pairs = torch.stack([found // 2, found % 2], dim=2)
    kl = metrics.stacked_modes(pairs, n_classes=2).kl
    error = float(kl.std()) / math.sqrt(draws)
    assert abs(float(kl.mean()) - metrics.kl_floor(n, p)) < 5 * error
    assert abs(float(kl.mean()) - metrics.kl_floor(2 * n, p)) > 10 * error
    # By hand: two draws of two modes are in one with probability 1/2.
    assert metrics.kl_floor(2, torch.full((2,), 0.5)) == pytest.approx(math.log(2) / 2)
    assert metrics.kl_floor(1, p) == pytest.approx(math.log(4))
    assert metrics.kl_floor(26_000, torch.full((1000,), 1e-3)) == pytest.approx(0.01934, abs=1e-5)


def test_what_is_no_distribution_has_no_floor():
    for p in (torch.tensor([0.5, 0.4]), torch.tensor([1.5, -0.5])):
        with pytest.raises(ValueError, match="at least 0 and sum to 1"):
            metrics.kl_floor(10, p)


# ---- the paired loss


def test_the_paired_loss_sees_differences_only():
    real, fake = randn(2, 6, generator=rng(1)), randn(2, 6, generator=rng(2))
    d, g = losses.relativistic_d_loss(real, fake), losses.relativistic_g_loss(real, fake)
    torch.testing.assert_close(d, torch.log1p((fake - real).exp()).mean(dim=1))
    torch.testing.assert_close(g, torch.log1p((real - fake).exp()).mean(dim=1))
    torch.testing.assert_close(d - g, (fake - real).mean(dim=1))
    torch.testing.assert_close(losses.relativistic_d_loss(real + 9, fake + 9), d)
    # Controls: a usual loss has a level, and other pairs are another loss.
    assert not torch.allclose(losses.gan_d_loss(real + 9, fake + 9), losses.gan_d_loss(real, fake))
    assert not torch.allclose(losses.relativistic_d_loss(real, fake.flip(1)), d)
    with pytest.raises(ValueError, match=r"real must be \(R, n\), fake \(R, n\).*\(2, 5\)"):
        losses.relativistic_d_loss(real, fake[:, :5])


# ---- the game


@pytest.mark.parametrize("loss", LOSSES)
def test_a_game_that_is_loaded_goes_on_as_it_would_have(loss):
    whole, first, second = game(loss), game(loss), game(loss, seed=1)
    for _ in range(3):
        whole.iterate()
    first.iterate()
    second.load(first.state())
    for _ in range(2):
        second.iterate()
    assert flat(whole).keys() == flat(second).keys()
    assert all(torch.equal(value, flat(second)[key]) for key, value in flat(whole).items())
    # A control: without the state of the random numbers it is another game.
    other = game(loss, seed=1)
    other.load({**first.state(), "rng": rng(9).get_state()})
    other.iterate(), other.iterate()
    assert not torch.equal(flat(other)["generator/network.0.weight"], weights(whole)[0])


def flat(play):
    """All weights of a game by their names."""
    return {
        f"{name}/{key}": value.nan_to_num()
        for name, network in play.networks.items()
        for key, value in network.state_dict().items()
    } | {"information": play.information.nan_to_num(), "step": play.step}


def weights(play):
    return [weight.detach().clone() for weight in play.gan.generator.parameters()]


def closed_form(loss, play, x, y):
    """The discriminator's loss of a table's row, for data x and samples y, in plain PyTorch."""

    def slope(points):
        points = points.clone().requires_grad_()
        (grad,) = torch.autograd.grad(play.gan.discriminator(points).sum(), points)
        return grad.flatten(2).square().sum(dim=2)

    real, fake = play.gan.discriminator(x), play.gan.discriminator(y)
    critic = fake.mean() - real.mean()
    usual = (F.softplus(-real) + F.softplus(fake)).mean()
    return {
        "meg": critic + 10 * slope(x).mean(),
        "meg_no_entropy": critic + 10 * slope(x).mean(),
        "relativistic_r1_r2": F.softplus(fake - real).mean() + (slope(x) + slope(y)).mean() / 2,
        "non_saturating_r1": usual + slope(x).mean() / 2,
        "non_saturating": usual,
        # Between x and itself lies x only.
        "wgan_gp": critic + 10 * (slope(x).sqrt() - 1).square().mean(),
    }[loss]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_losses_are_those_of_the_table(loss, monkeypatch):
    play, seen = game(loss), {}
    with torch.no_grad():
        for weight in play.gan.discriminator.parameters():
            weight.mul_(3)  # so steep that each penalty is seen
    monkeypatch.setattr(play, "_autocast", lambda: torch.autocast("cpu", enabled=False))
    x = pictures(18).reshape(1, 6, 3, 28, 28)
    play.data = lambda size, rng: x
    if loss == "wgan_gp":  # its points between are drawn: the samples are made to be the data
        play.gan.generator.forward = lambda z: x + 0 * z.sum()
    monkeypatch.setattr(play, "_average", lambda: None)

    def descend(player, value):
        seen.setdefault(player, []).append(float(value.detach().sum()))

    monkeypatch.setattr(play, "_descend", descend)
    start = play.rng.get_state()
    play.iterate()
    assert len(seen["discriminator"]) == (5 if loss in ("meg", "meg_no_entropy", "wgan_gp") else 1)
    play.rng.set_state(start)
    y = play.gan.generator(play.gan.prior((1, 6), play.rng)).detach()
    expected = float(closed_form(loss, play, x, y).detach())
    assert seen["discriminator"][0] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    if LOSSES[loss].d_steps == 1:  # of the generator, on the draws after those of the discriminator
        z = play.gan.prior((1, 6), play.rng)
        real, fake = play.gan.discriminator(x), play.gan.discriminator(play.gan.generator(z))
        raised = F.softplus(real - fake if "relativistic" in loss else -fake).mean()
        assert seen["generator"][0] == pytest.approx(float(raised.detach()), rel=1e-4)
    others = {other: float(closed_form(other, play, x, y).detach()) for other in LOSSES}
    same = {other for other, value in others.items() if value == pytest.approx(expected, rel=1e-3)}
    assert same == ({"meg", "meg_no_entropy"} if loss.startswith("meg") else {loss}), "a control"
    information = float(play.information)
    assert math.isnan(information) == (loss != "meg")
    if loss == "meg":
        assert -2 * math.log(2) - 1 < information < 0


def test_the_entropy_changes_the_generator_only():
    with_it, without = game("meg"), game("meg_no_entropy")
    for name in ("generator", "discriminator"):
        without.networks[name].load_state_dict(with_it.networks[name].state_dict())
    without.rng.set_state(with_it.rng.get_state())
    d = [p.clone() for p in with_it.gan.discriminator.parameters()]
    with_it.iterate(), without.iterate()
    same = zip(
        with_it.gan.discriminator.parameters(),
        without.gan.discriminator.parameters(),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in same), "the five steps of d come first"
    assert not torch.equal(d[0], next(with_it.gan.discriminator.parameters()))
    assert not torch.equal(weights(with_it)[0], weights(without)[0])


def test_stacks_stand_beside_their_own_latents_and_beside_others():
    play = game()
    x, z = randn(1, 6, 3, 28, 28, generator=rng()), randn(1, 6, 5, generator=rng(1))
    joint, product = play.statistics(x, z)
    moved, _ = play.statistics(x, z.roll(1, dims=1))
    torch.testing.assert_close(product, moved)
    assert (product - joint).abs().min() > 1e-6


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_goes_down_each_weight_s_own_gradient(loss, monkeypatch):
    """The first step of Adam is the rate against the sign of the gradient, weight by weight."""
    play, found = game(loss, width_d=8), {}
    rate, descend = 2e-4, play._descend

    def noted(player, value):
        weights = play.optimizers[player].param_groups[0]["params"]
        before = [weight.detach().clone() for weight in weights]
        grads = torch.autograd.grad(value.sum(), weights, retain_graph=True)
        descend(player, value)
        if player not in found:
            rows = zip(weights, before, grads, strict=True)
            found[player] = [(w.detach() - b, g.reshape(b.shape)) for w, b, g in rows]

    monkeypatch.setattr(play, "_descend", noted)
    play.iterate()
    assert found.keys() == {"discriminator", "generator"}
    for moved, grad in (row for rows in found.values() for row in rows):
        seen = grad.abs() > 1e-6  # far above the epsilon of Adam
        torch.testing.assert_close(moved[seen], -rate * grad[seen].sign(), atol=0.02 * rate, rtol=0)


def test_a_fused_step_takes_memory_as_it_lies():
    """The control: of a gradient with other strides a weight gets another's part, or an error."""
    weight = nn.Parameter(torch.zeros(2, 3))
    weight.grad = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]).t()
    grad = weight.grad.clone()
    adam = torch.optim.Adam([weight], 1.0, fused=True)
    try:
        adam.step()
    except RuntimeError:
        return
    if torch.equal(weight.detach().sign(), -grad.sign()):
        pytest.skip("this PyTorch follows the strides")


def test_the_entropy_term_is_raised():
    raised, lowered = (game(batch_size=32, learning_rate=1e-2) for _ in range(2))
    lowered.rule = lowered.rule._replace(entropy=-1.0)
    for _ in range(20):
        raised.iterate(), lowered.iterate()
    # Independent x and z have -2 log 2, and lowered instead of raised it falls without end.
    assert raised.information > -2 * math.log(2) - 0.01 > -1000 > lowered.information


def test_the_rate_falls_to_0_also_where_a_training_goes_on():
    def rates(play):
        return [float(adam.param_groups[0]["lr"]) for adam in play.optimizers.values()]

    play, found = game("non_saturating", n_steps=4), []
    for _ in range(2):
        play.iterate()
        found += rates(play)
    later = game("non_saturating", n_steps=4)
    later.load(play.state())
    assert all(adam.param_groups[0]["lr"] is later.rate for adam in later.optimizers.values())
    for _ in range(2):
        later.iterate()
        found += rates(later)
    assert found == pytest.approx(
        [2e-4 * share for share in (1, 1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25)]
    )
    before = weights(later)[0]
    later.iterate()  # one more than there are
    assert torch.equal(weights(later)[0], before)


def test_the_averaged_generator_forgets_its_start():
    play, seen = game("non_saturating", decay=0.7), []
    start = weights(play)[0]
    for _ in range(4):
        play.iterate()
        seen.append(weights(play)[0])
    shares = torch.tensor([0.3 * 0.7 ** (3 - i) for i in range(4)]) / (1 - 0.7**4)
    expected = sum(share * weight for share, weight in zip(shares, seen, strict=True))
    found = next(play.averaged.parameters())
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, sum(0.3 * 0.7**i * w for i, w in enumerate(seen[::-1])))
    assert not torch.equal(start, seen[0])


def test_weights_are_drawn_with_a_sixth_of_he_s_variance():
    network = stack_generator(32, 16, generator=rng())
    h = randn(200, 16, generator=rng(1))
    for layer in network.network:
        if isinstance(layer, nn.BatchNorm2d):
            continue  # without it the variance is that of the weights
        was, h = h, layer(h)
        if isinstance(layer, nn.ConvTranspose2d):
            inner = h[..., 2:-2, 2:-2].square().mean()
            assert float((inner / was.square().mean()).detach()) == pytest.approx(1 / 3, rel=0.3)
    assert stack_discriminator(2, generator=rng())(torch.zeros(1, 4, 3, 28, 28)).abs().max() == 0
    energy = stack_discriminator(2, True, generator=rng())
    x = randn(1, 4, 3, 28, 28, generator=rng())
    plain = stack_discriminator(2, generator=rng())
    assert isinstance(energy, NegativeEnergy) and torch.equal(energy(x), -plain(x))


def test_an_energy_is_low_at_data():
    play = game("meg", batch_size=12)
    play.data = lambda size, rng: torch.full((*size, 3, 28, 28), 0.9)
    for _ in range(6):
        play.iterate()
    with torch.no_grad():
        x, y = play.data((1, 5), None), play.gan.generator(play.gan.prior((1, 5), rng()))
        assert play.gan.discriminator.energy(x).mean() < play.gan.discriminator.energy(y).mean()


# ---- the scores


class Reads(nn.Module):
    """A classifier that reads the digit off the first pixel."""

    def forward(self, x):
        return -((x[:, 0, 0, 0, None] * 10 - torch.arange(10.0)) ** 2)


def modes_of(stacks, judge):
    return stacked_mnist.modes_of(stacked_mnist.read(stacks, judge))


def test_modes_of_stacks_are_those_of_their_digits():
    every = torch.tensor(list(itertools.product(range(10), repeat=3)))
    stacks = (every / 10).reshape(1, 1000, 3, 1, 1).expand(1, 1000, 3, 28, 28)
    judge = Reads().eval()
    assert torch.equal(stacked_mnist.classes(judge, stacks)[0], every)
    assert modes_of([stacks[:, :300], stacks[:, 300:]], judge) == (1000, 0)
    modes, kl = modes_of([stacks[:, :10]], judge)
    assert modes == 10 and kl == pytest.approx(math.log(100))
    lost = stacks.clone()
    lost[0, 0] = math.nan
    assert all(map(math.isnan, modes_of([lost], judge)))


def test_a_classifier_in_training_mode_is_refused():
    judge = digit_classifier(2, 4, 0.5, generator=rng())
    stacks = randn(1, 7, 3, 28, 28, generator=rng())
    with pytest.raises(ValueError, match=r"training mode; call its eval\(\)"):
        stacked_mnist.classes(judge, stacks)
    assert stacked_mnist.classes(judge.eval(), stacks).shape == (1, 7, 3)
    judge[-2].train()  # one layer of it is enough
    with pytest.raises(ValueError, match="training mode"):
        modes_of([stacks], judge)


def test_samples_are_drawn_in_evaluation_mode():
    generator, gen = stack_generator(4, 5, generator=rng()), rng(1)
    running = generator.network[2].running_mean.clone()
    parts = stacked_mnist.stacks_of(generator, 5, 1500, gen)
    assert [part.shape[1] for part in parts] == [1000, 500] and generator.training
    assert torch.equal(generator.network[2].running_mean, running)
    alone = generator.eval()(randn(1, 1500, 5, generator=rng(1))[:, :1])
    # To the precision of bfloat16, eight bits.
    torch.testing.assert_close(parts[0][:, :1], alone, atol=0.05, rtol=0)
    assert parts[0].dtype == torch.float32


class Constant(nn.Module):
    """A generator of stacks of one grey level."""

    def __init__(self, level):
        super().__init__()
        self.level = level

    def forward(self, z):
        return torch.full((*z.shape[:2], 3, 28, 28), self.level)


class Whole(nn.Module):
    """A second classifier, whose features are pixels and who sees 0 and 1 in turn."""

    def features(self, x):
        return x.flatten(1)[:, ::99] + torch.randn(len(x), 8, generator=rng(len(x)))

    def forward(self, x):
        return (torch.arange(10) == torch.arange(len(x))[:, None] % 2).float()


def test_the_last_scores_are_those_of_both_generators_and_the_second_judge_sees_the_last():
    n = 8
    test, train = ({f"{k}_mean": torch.zeros(n) + m, f"{k}_covariance": torch.eye(n)}
                   for k, m in (("test", 0.5), ("train", -0.5)))  # fmt: skip
    judges = {
        stacked_mnist.COUNTING: checkpoints.Checkpoint({"classifier": Reads().eval()}, {}, {}),
        stacked_mnist.SECOND: checkpoints.Checkpoint(
            {"classifier": Whole().eval()}, test | train, {}
        ),
    }
    pair = [Constant(0.1), Constant(0.5)]
    given = {"samplings": 2, "n_last": 1200}
    found = stacked_mnist.last_scores(pair, 5, judges, given, rng())
    assert found["modes"].tolist() == [[1, 1], [1, 1]] and found["kl"].shape == (2, 2)
    assert found["second"].tolist() == pytest.approx([2, math.log(500)])
    p = found["counts"].flatten(1) / 1200
    assert p.sum(dim=1).tolist() == [1, 1] and (p > 0).sum(dim=1).tolist() == [1, 1]
    assert found["kl"][0, 0] == pytest.approx(float((p * (1000 * p).log()).nan_to_num()[0].sum()))
    # All features have the mean 0.5 of the test set, and the covariance 1.
    assert float(found["fid"]) < 0.5
    stacks = stacked_mnist.stacks_of(pair[1], 5, 1200, rng())
    assert stacked_mnist.fid_of(stacks, judges[stacked_mnist.SECOND], "train") > n - 1
    first = stacked_mnist.last_scores(pair[::-1], 5, judges, given, rng())
    assert float(first["fid"]) > 1, "a control: 0.1 is not the mean of the test set"


def test_each_stack_is_counted_where_its_digits_are():
    digits = torch.tensor([[1, 2, 3], [1, 2, 3], [9, 0, 4]])

    class Reads(nn.Module):
        def forward(self, x):
            return F.one_hot((x[:, 0, 0, 0] * 10).round().long(), 10).float()

    stacks = (digits / 10)[None, :, :, None, None].expand(1, 3, 3, 28, 28)
    counts = stacked_mnist.counts_of(
        stacked_mnist.read([stacks[:, :2], stacks[:, 2:]], Reads().eval())
    )
    assert counts[1, 2, 3] == 2 and counts[9, 0, 4] == 1 and counts.sum() == 3
    assert stacked_mnist.counts_of(stacked_mnist.read([stacks / 0], Reads().eval())).sum() == 0


# ---- the recipe


def key(training):
    return runs.key_of(stacked_mnist.own_settings(training, "half"))


def test_a_training_depends_on_its_own_settings_only(monkeypatch):
    names = [training.name for training in stacked_mnist.trainings()]
    assert len(set(names)) == len(names) == 22
    assert names[:3] == ["meg-long", "meg_no_entropy-long", "relativistic_r1_r2-long"]
    assert names[6:8] == ["meg-0", "meg_no_entropy-0"] and names[-1] == "meg-0-narrow4"
    before = {training: key(training) for training in stacked_mnist.trainings()}
    assert len(set(before.values())) == len(before)
    monkeypatch.setitem(LOSSES, "wgan_gp", LOSSES["wgan_gp"]._replace(weight=1.0))
    changed = {training.name for training, was in before.items() if key(training) != was}
    assert changed == {"wgan_gp-0", "wgan_gp-long"}
    monkeypatch.setitem(stacked_mnist.SIZES["half"]["steps"], "5", 5)
    changed = {training.loss for training, was in before.items() if key(training) != was}
    assert changed == {"meg", "meg_no_entropy", "wgan_gp"}
    monkeypatch.setitem(stacked_mnist.SCORING, "n_last", 5)
    assert all(key(training) != was for training, was in before.items())


def test_each_training_has_a_seed_of_its_own():
    assert len({stacked_mnist.seed_of(0, each) for each in stacked_mnist.trainings()}) == 22
    assert stacked_mnist.seed_of(0, Training("meg", 0)) != stacked_mnist.seed_of(
        1, Training("meg", 0)
    )


def test_a_narrow_training_has_a_narrow_discriminator_only():
    wide, narrow = (
        stacked_mnist.own_settings(Training("meg", 1, n), "half")["sizes"] for n in (1, 4)
    )
    assert narrow == {**wide, "width_d": wide["width_d"] // 4}
    assert Training("meg", 0, 4).name == "meg-0-narrow4"


def told(capsys, *options):
    with pytest.raises(SystemExit) as error:
        stacked_mnist.main([*options])
    assert error.value.code == 2
    return capsys.readouterr().err


def test_bad_options_are_refused(tmp_path, capsys, monkeypatch):
    folders = ["--out", str(tmp_path), "--state", str(tmp_path)]
    line = told(capsys, *folders, "--only", "meg", "began")
    assert "no loss or training began; give some of meg, meg-0," in line
    assert "must be at least 1, got 0" in told(capsys, *folders, "--jobs", "0")
    monkeypatch.setenv("GAN_EBM_DEVICE", "nowhere")
    assert "no GAN_EBM_DEVICE 'nowhere' here; set it to cpu" in told(capsys, *folders)
    if not torch.cuda.is_available():
        monkeypatch.setenv("GAN_EBM_DEVICE", "cuda")
        assert "no GAN_EBM_DEVICE 'cuda' here; set it to cpu" in told(capsys, *folders)
    monkeypatch.setenv("GAN_EBM_DEVICE", "cpu")
    monkeypatch.setenv("GAN_EBM_DATA", str(tmp_path / "none"))
    (tmp_path / "none").write_text("a file")
    assert "Set GAN_EBM_DATA to a folder" in told(capsys, *folders)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("size", ["half", "full"])
def test_a_long_training_has_more_steps_and_as_many_looks(size):
    long, usual = Training("meg", is_long=True), Training("meg", 1)
    given, short = (stacked_mnist.own_settings(each, size) for each in (long, usual))
    same = given["sizes"].keys() - {"steps"}
    assert all(given["sizes"][key] == short["sizes"][key] for key in same)
    steps, n = given["sizes"]["steps"], given["scoring"]["n_points"]
    for each in (given, short):
        points = stacked_mnist.points_of(each)
        assert len(points) == n and points == sorted(set(points))
        assert points[-1] == each["sizes"]["steps"]
    assert steps > short["sizes"]["steps"]
    assert given["scoring"]["samplings"] == 3 and short["scoring"]["samplings"] == 1
    whole, times = stacked_mnist.cost(long, given), steps / short["sizes"]["steps"]
    assert whole == pytest.approx(times * stacked_mnist.cost(usual, short))
    stages, points = stacked_mnist.stages_of(long, given), stacked_mnist.points_of(given)
    assert len(stages) == len(points) + 1 and stages["meg-long"] < 0.1 * whole
    assert stages[f"meg-long at {points[0]}"] == pytest.approx(whole * points[0] / points[-1])
    assert sum(stages.values()) - stages["meg-long"] == pytest.approx(whole)


@pytest.mark.parametrize("able", [True, False])
def test_networks_compute_in_bfloat16_where_it_is_fast(able, monkeypatch):
    found = {"amx_bf16": able}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    with runs.autocast(torch.device("cpu")):
        y = stack_discriminator(2, generator=rng())(pictures(3).expand(-1, 3, -1, -1)[None])
    assert y.dtype == runs.precision(torch.device("cpu"))
    assert y.dtype == (torch.bfloat16 if able else torch.float32)
    assert runs.precision(torch.device("cuda")) == torch.bfloat16
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in an older PyTorch
    assert runs.precision(torch.device("cpu")) == torch.float32


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The recipe at tiny sizes, and the folders of its start."""
    sizes = {**SIZES, "steps": {"1": 4, "5": 2}, "long": {"steps": {"1": 12, "5": 6}}}
    monkeypatch.setitem(stacked_mnist.SIZES, "half", sizes)
    small = {"n_points": 2, "n_course": 30, "n_last": 40, "samplings": 2}
    monkeypatch.setattr(stacked_mnist, "SCORING", small)
    monkeypatch.setattr(
        stacked_mnist, "mnist", lambda split: Images(pictures(), torch.zeros(20, dtype=torch.long))
    )
    monkeypatch.setattr(stacked_mnist.runs, "mnist_source", dict)
    return ["--state", str(tmp_path / "state"), "--out", str(tmp_path / "out"), "--jobs", "1"]


def test_what_is_stored_is_what_was_scored(tiny, tmp_path, monkeypatch, capsys):
    scored, made, score = [], {}, stacked_mnist.last_scores

    def noted(generators, *arguments):
        scored.append(copy.deepcopy(generators))
        return score(generators, *arguments)

    def seen(known, task, *arguments, add=stacked_mnist.add):
        made[task.training.name] = task.stored()["made"]
        add(known, task, *arguments)

    monkeypatch.setattr(stacked_mnist, "last_scores", noted)
    monkeypatch.setattr(stacked_mnist, "add", seen)
    stacked_mnist.main([*tiny, "--only", "meg-long", "non_saturating"])
    assert "missing: meg_no_entropy-long," in capsys.readouterr().out
    last, averaged = scored[0]
    pair = checkpoints.load("stacked_mnist_meg", folder=tmp_path / "out")
    for key, value in averaged.state_dict().items():
        assert torch.equal(value, pair.networks["generator"].state_dict()[key])
    assert not torch.equal(last.network[0].weight, averaged.network[0].weight)
    assert made["non_saturating-0"]["weights"] == made["non_saturating-long"]["weights"] == {}
    assert len(checkpoints.available(tmp_path / "out")) == 2, "only MEG's networks are kept"
    # 5 steps of d: x, y, x with a gradient; one of G: y. d forward 5 * 3 + 1, G forward 5 + 1, and
    # backward d twice at x, for its penalty, once each at x and y, and once for G, as G itself.
    assert made["meg-long"]["calls"][0] == 6 * (5 * 3 + 1 + 5 + 1)
    stored = checkpoints.load("stacked_mnist", folder=tmp_path / "out")
    assert stored.tensors["meg-long/course"][:, 0].tolist() == [3, 6]
    assert stored.tensors["meg-long/modes"].shape == stored.tensors["meg-long/kl"].shape == (2, 2)
    assert stored.tensors["non_saturating-0/kl"].shape == (2, 1)
    assert stored.card["keys"].keys() == stored.card["metrics"]["trainings"].keys()
    assert stored.card["keys"]["meg-long"] == pair.card["key"]
    assert stored.card["metrics"]["trainings"]["meg-long"]["steps"] == 6
    assert not list((tmp_path / "state").rglob("*.pt")), "parts of finished trainings are removed"


def test_a_later_start_adds_to_the_checkpoint(tiny, tmp_path, monkeypatch, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    stacked_mnist.main([*tiny, "--only", "meg-long"])
    stacked_mnist.main([*tiny, "--only", "meg-1", "non_saturating-0"])
    both = checkpoints.load("stacked_mnist", folder=out)
    assert sorted(both.card["keys"]) == ["meg-1", "meg-long", "non_saturating-0"]
    # As if they had been made at once.
    at_once = [*tiny[:2], "--out", str(other), "--jobs", "1"]
    stacked_mnist.main([*at_once, "--only", "meg-long", "meg-1", "non_saturating-0"])
    whole = checkpoints.load("stacked_mnist", folder=other).tensors
    assert all(torch.equal(v.nan_to_num(), whole[k].nan_to_num()) for k, v in both.tensors.items())
    # What is there is not made again, unless what it depends on has changed or its pair is gone.
    monkeypatch.setattr(Game, "iterate", lambda self: 1 / 0)
    capsys.readouterr()
    stacked_mnist.main([*tiny, "--only", "meg-long", "meg-1"])
    assert "meg-long: kept\nmeg-1: kept\n" in capsys.readouterr().out.replace(
        "non_saturating-0: kept\n", ""
    )
    card = json.loads((out / "stacked_mnist_meg.json").read_text())
    (out / "stacked_mnist_meg.json").write_text(json.dumps({**card, "key": "another"}))
    with pytest.raises(ZeroDivisionError):
        stacked_mnist.main([*tiny, "--only", "meg-long"])
    (out / "stacked_mnist_meg.json").write_text(json.dumps(card))
    (out / "stacked_mnist_meg.safetensors").write_bytes(b"")
    with pytest.raises(ZeroDivisionError):
        stacked_mnist.main([*tiny, "--only", "meg-long"])
    monkeypatch.setitem(LOSSES, "non_saturating", LOSSES["non_saturating"]._replace(weight=1.0))
    with pytest.raises(ZeroDivisionError):
        stacked_mnist.main([*tiny, "--only", "non_saturating-0"])
    assert checkpoints.load("stacked_mnist", folder=out).card["keys"] == both.card["keys"]


def test_the_classifier_that_counts_is_as_good_as_its_card():
    second, first = (checkpoints.load(name) for name in stacked_mnist.JUDGES)
    assert second.card["recipe"] == "stacked_classifier"
    assert second.card["data_sha256"] == first.card["data_sha256"]
    low, high = second.card["metrics"]["test_accuracy_interval_95"]
    assert 0.98 < low < second.card["metrics"]["test_accuracy"] < high
    images = first.tensors["check_images"].float() / 127.5 - 1
    found = second.networks["classifier"](images).argmax(dim=1)
    assert (found == first.tensors["check_labels"]).sum() >= len(found) - 1
