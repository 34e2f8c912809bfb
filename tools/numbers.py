"""Compare the numbers that prose quotes with those that outputs and tables show."""

import re
from collections.abc import Iterable

# A decimal or a percentage in prose, and any number in an output; links, code and versions are no prose.
_QUOTED = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+(?: ?%)?| ?%)(?![\w.]*\d)")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
_NO_PROSE = re.compile(r"\]\([^)]*\)|```.*?```|`[^`]*`|<[^>]*>|arXiv[: ]\S+", re.DOTALL)
_MARKUP = re.compile(r"<style.*?</style>|<[^>]*>", re.DOTALL)


def shown_numbers(text: str) -> set[float]:
    """All numbers in `text`, plain or HTML."""
    return {float(number.replace(",", "")) for number in _NUMBER.findall(_MARKUP.sub(" ", text))}


def unsupported(prose: str, shown: Iterable[float]) -> list[str]:
    """Percentages and decimals in Markdown `prose` that are no rounding of a number in `shown`, in reading order."""
    return [quoted for quoted in _QUOTED.findall(_NO_PROSE.sub("", prose)) if not _is_rounding(quoted, shown)]


def _is_rounding(quoted: str, shown: Iterable[float]) -> bool:
    digits = quoted.rstrip("% ").replace(",", "")
    value, decimals = float(digits), len(digits.partition(".")[2])
    scales = (1, 100) if "%" in quoted else (1, 100, 0.01)  # shares are printed as 0.886 or as 88.6
    return any(abs(scale * number - value) <= 0.5000001 * 10**-decimals for number in shown for scale in scales)
