"""A claim prints one stable line, or raises with the numbers."""

import io
import json
import os
import subprocess
import sys
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


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "✓ é ≤ 3".encode()),
        ("cp1252", b"ok \xe9 ? 3"),
        ("ascii", b"ok ? ? 3"),
    ],
)
def test_a_claim_that_holds_is_printed_in_every_encoding(monkeypatch, encoding, shown):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, newline="\n"))
    claim("é ≤ 3", 2, at_most=3)
    sys.stdout.flush()
    assert raw.getvalue() == shown + b"\n"


def test_a_claim_that_holds_is_printed_where_there_is_no_encoding(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    claim("it is so", 2, at_most=3)
    assert sys.stdout.getvalue() == "✓ it is so\n"
    monkeypatch.setattr(sys, "stdout", None)  # of a program without a console
    claim("it is so", 2, at_most=3)


def test_a_console_of_windows():
    code = "from gan_ebm_utils.claims import claim; claim('a', 2, at_most=3)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert (run.returncode, run.stdout.split()) == (0, [b"ok", b"a"]), run.stderr


def test_a_claim_is_about_one_number():
    claim("it is so", torch.ones(1, 1), at_least=1)
    with pytest.raises(ValueError, match=r"one number, 'it is so' got \(3,\)"):
        claim("it is so", torch.ones(3), at_least=1)


def test_the_log_is_expanded_and_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GAN_EBM_CLAIMS_LOG", "~/log")
    claim("holds", 1, at_least=0)
    assert (tmp_path / "log").exists()
    monkeypatch.setenv("GAN_EBM_CLAIMS_LOG", str(tmp_path / "log" / "below"))
    with pytest.raises(OSError, match="cannot write .*below.*GAN_EBM_CLAIMS_LOG"):
        claim("holds", 1, at_least=0)
