"""Verdicts: what a number, its interval and a range say of a claim."""

import math
from dataclasses import dataclass, field

AGREES, DIFFERS, OPEN = "agrees", "differs", "can't be tested here"
PERCENT, FINE, PLAIN, SIGNED = "{:.0%}", "{:.1%}", "{:.2f}", "{:+.3f}"


@dataclass(frozen=True)
class Finding:
    """One number that decides, its 95% interval, and the range in which the claim has it.

    It agrees where the interval lies in the range, differs where it lies wholly outside, and is open otherwise.
    """

    what: str
    value: float
    low: float
    high: float
    floor: float = -math.inf
    ceiling: float = math.inf
    form: str = PERCENT

    @property
    def verdict(self) -> str:
        if self.floor <= self.low and self.high <= self.ceiling:
            return AGREES
        return DIFFERS if self.high < self.floor or self.low > self.ceiling else OPEN

    def __str__(self) -> str:
        return f"{self.what}: {self.shown}; the claim asks for {self.asked}"

    @property
    def shown(self) -> str:
        """The number with its interval."""
        value, low, high = (self._shown(number) for number in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"

    @property
    def asked(self) -> str:
        floor, ceiling = self._shown(self.floor), self._shown(self.ceiling)
        if math.isinf(self.ceiling):
            return f"{floor} or more"
        return f"{ceiling} or less" if math.isinf(self.floor) else f"{floor} to {ceiling}"

    def _shown(self, value: float) -> str:
        return "beyond the last cut" if math.isinf(value) else self.form.format(value)


@dataclass(frozen=True)
class Ruling:
    """The verdict on one claim, for one model and one task, text or table."""

    about: str
    findings: list[Finding] = field(default_factory=list)
    obstacle: str = ""  # why it can't be tested, but by what the findings rule out
    of_paper: bool = True  # about what the paper measured; else a task of our own
    topic: str = ""  # the task's name alone

    @property
    def verdict(self) -> str:
        found = {finding.verdict for finding in self.findings}
        if DIFFERS in found:
            return DIFFERS
        return OPEN if self.obstacle or OPEN in found or not found else AGREES

    @property
    def reason(self) -> str:
        if self.verdict == AGREES:
            return "every interval lies where the claim has it"
        if self.obstacle and self.verdict == OPEN:
            return self.obstacle
        decisive = "; ".join(finding.what for finding in self.findings if finding.verdict == self.verdict)
        if self.verdict == DIFFERS:
            return f"wholly outside the claim: {decisive}"
        return f"the interval reaches over the limit, and more items would decide: {decisive}"
