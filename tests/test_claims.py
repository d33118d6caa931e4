"""A claim prints one stable line, or raises with the numbers."""

import json
import warnings

import pytest
import torch

from gan_ebm_utils.claims import ClaimError, claim


@pytest.mark.parametrize("value", [0.1, 0.5, torch.tensor(0.3, dtype=torch.float64)])
def test_a_claim_that_holds_prints_its_text_alone(capsys, value):
    claim("it is so", value, at_most=0.5, at_least=0.1)
    assert capsys.readouterr() == ("✓ it is so\n", "")


@pytest.mark.parametrize(
    ("value", "bounds", "says"),
    [
        (0.6, {"at_most": 0.5}, "it is so: 0.6 is not at most 0.5"),
        (0.4, {"at_least": 0.5}, "it is so: 0.4 is not at least 0.5"),
        (0.05, {"at_most": 0.5, "at_least": 0.1}, "0.05 is not at least 0.1"),
        (float("nan"), {"at_most": 0.5}, "nan is not at most"),
        (float("nan"), {"at_least": 0.5}, "nan is not at least"),
        (float("inf"), {"at_most": 0.5}, "inf is not at most"),
    ],
)
def test_a_claim_that_fails_says_the_numbers(capsys, value, bounds, says):
    with pytest.raises(ClaimError, match=says):
        claim("it is so", value, **bounds)
    assert capsys.readouterr().out == ""


def test_a_claim_needs_a_bound():
    with pytest.raises(ValueError, match="'it is so' has neither"):
        claim("it is so", 1)


def test_a_value_may_carry_a_gradient():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        claim("it is so", torch.tensor(1.0, requires_grad=True), at_least=0)


def test_the_log_holds_every_value_and_nothing_is_raised(tmp_path, monkeypatch, capsys):
    log = tmp_path / "claims.jsonl"
    monkeypatch.setenv("GAN_EBM_CLAIMS_LOG", str(log))
    claim("holds", 1, at_least=0)
    claim("fails", 1, at_most=0)
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert lines == [
        {"text": "holds", "value": 1.0, "at_most": None, "at_least": 0},
        {"text": "fails", "value": 1.0, "at_most": 0, "at_least": None},
    ]
    assert capsys.readouterr().out == "✓ holds\n✓ fails\n"
