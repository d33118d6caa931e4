"""Statements of a chapter's text, tested whenever the notebook runs."""

import json
import sys

from torch import Tensor

from gan_ebm_utils.base import environment_path


class ClaimError(AssertionError):
    """A claim does not hold; the message gives the numbers."""


def claim(
    text: str, value: float | Tensor, *, at_most: float | None = None, at_least: float | None = None
) -> None:
    """Print `text` with a check mark if `value` lies within the bounds, else raise ClaimError.

    The line holds no number, so that it is the same on every machine; the mark is "ok" where the
    output's encoding has no check mark. If the environment variable
    GAN_EBM_CLAIMS_LOG names a file, the text, the value and the bounds are appended to it as a line
    of JSON and nothing is raised: the study of margins measures how far from its bounds a claim
    stays, and wants to see all of them.

    Raises ValueError without a bound or for several numbers, ClaimError for a value that is nan.

    >>> claim("two is small", 2, at_most=3)
    ✓ two is small
    >>> claim("two is large", 2, at_least=3)
    Traceback (most recent call last):
    gan_ebm_utils.claims.ClaimError: two is large: 2 is not at least 3
    """
    if at_most is None and at_least is None:
        raise ValueError(f"a claim needs at_most, at_least or both; {text!r} has neither")
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"a claim is about one number, {text!r} got {tuple(value.shape)}")
        value = value.detach()
    value = float(value)
    if log := environment_path("GAN_EBM_CLAIMS_LOG"):
        line = {"text": text, "value": value, "at_most": at_most, "at_least": at_least}
        try:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise OSError(
                f"cannot write {log}: {error}; set GAN_EBM_CLAIMS_LOG to a file that can be written"
            ) from error
    else:
        # Written so that nan fails.
        if at_most is not None and not value <= at_most:
            raise ClaimError(f"{text}: {value:.6g} is not at most {at_most:g}")
        if at_least is not None and not value >= at_least:
            raise ClaimError(f"{text}: {value:.6g} is not at least {at_least:g}")
    print(_printable(f"✓ {text}"))


def _printable(line: str) -> str:
    """`line` as it is, or what the output's encoding can show of it."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        line = line.replace("✓", "ok", 1).encode(encoding, "replace").decode(encoding)
    return line
