"""Statements of a chapter's text, tested whenever the notebook runs."""

from __future__ import annotations

import json
import os

from torch import Tensor


class ClaimError(AssertionError):
    """A claim does not hold; the message gives the numbers."""


def claim(
    text: str,
    value: float | Tensor,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> None:
    """Print `text` with a check mark if `value` lies within the bounds, else raise ClaimError.

    The line holds no number, so that it is the same on every machine. If the environment variable
    GAN_EBM_CLAIMS_LOG names a file, the text, the value and the bounds are appended to it as a line
    of JSON and nothing is raised: the study of margins measures how far from its bounds a claim
    stays, and wants to see all of them.

    Raises ValueError without a bound, and ClaimError for a value that is nan.

    >>> claim("two is small", 2, at_most=3)
    ✓ two is small
    >>> claim("two is large", 2, at_least=3)
    Traceback (most recent call last):
    gan_ebm_utils.claims.ClaimError: two is large: 2 is not at least 3
    """
    if at_most is None and at_least is None:
        raise ValueError(f"a claim needs at_most, at_least or both; {text!r} has neither")
    value = float(value.detach() if isinstance(value, Tensor) else value)
    if log := os.environ.get("GAN_EBM_CLAIMS_LOG"):
        line = {"text": text, "value": value, "at_most": at_most, "at_least": at_least}
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    else:
        # Written so that nan fails.
        if at_most is not None and not value <= at_most:
            raise ClaimError(f"{text}: {value:.6g} is not at most {at_most:g}")
        if at_least is not None and not value >= at_least:
            raise ClaimError(f"{text}: {value:.6g} is not at least {at_least:g}")
    print(f"✓ {text}")
