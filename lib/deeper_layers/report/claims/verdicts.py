"""Verdicts: what numbers, their intervals and the ranges of a claim say of it, and how surely."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from deeper_layers.report.statistics import significance
from deeper_layers.report.statistics.curves import Z
from deeper_layers.report.statistics.topics import there_are

AGREES, DIFFERS = "agrees", "differs"
# three reasons for no verdict: nobody looked, nothing can be seen, not enough was seen
UNMEASURED, NOTHING, OPEN = "not measured", "nothing to lose", "inconclusive"
PERCENT, FINE, PLAIN, SIGNED = "{:.0%}", "{:.1%}", "{:.2f}", "{:+.3f}"
MANY = 1_000_000  # items: more would say nothing but "never"


class Obstacle(NamedTuple):
    """Why nothing can be said: a state, UNMEASURED or NOTHING or OPEN, and the reason in words."""

    state: str
    why: str


@dataclass(frozen=True)
class Finding:
    """One number that decides, its 95% interval, the range in which the claim has it, and what tests say of that.

    `p_agrees` is small where the value surely lies in the range (two one-sided tests), `p_differs` where it surely
    lies outside. Made by `of_draws` and `of_pairs`.
    """

    what: str
    value: float
    low: float
    high: float
    floor: float = -math.inf
    ceiling: float = math.inf
    form: str = PERCENT
    p_agrees: float = 1.0
    p_differs: float = 1.0
    items: int = 0
    counted: str = "items"  # what these are

    @classmethod
    def of_draws(
        cls, what: str, draws: np.ndarray, *, nearest: np.ndarray | None = None, floor=-math.inf, ceiling=math.inf,
        form=PERCENT, items=0,
    ) -> "Finding":  # fmt: skip
        """From resampled values, the first of all items (see `outcomes.resampled_means`).

        `nearest` are the same values, but for those that are infinite because no cut was so large: of them the least
        that they may be. They speak for or against a range only where all that they may be does. What lies exactly on
        a limit speaks for neither.
        """
        least = (draws if nearest is None else nearest)[1:]
        low = float(np.quantile(least, 0.025, method="nearest"))
        high = float(np.quantile(draws[1:], 0.975, method="nearest"))

        def share(odd):
            return (float(odd.sum()) + 1) / (len(least) + 1)

        # what is no number speaks for neither either
        most = draws[1:]
        outside = [share(~(least > floor))] * (floor > -math.inf) + [share(~(most < ceiling))] * (ceiling < math.inf)
        inside = [share(~(most < floor))] * (floor > -math.inf) + [share(~(least > ceiling))] * (ceiling < math.inf)
        return cls(what, float(draws[0]), low, high, floor, ceiling, form, max(outside), min(inside), items)

    @classmethod
    def of_pairs(
        cls, what: str, differences: np.ndarray, *, floor=-math.inf, ceiling=math.inf, form=SIGNED, shares=True
    ) -> "Finding":
        """The mean of paired differences, one an item (see `significance.paired`)."""
        differences = np.asarray(differences, dtype=float)
        outside, inside = [], []
        if floor > -math.inf:
            above, below = significance.tails(differences, floor, shares=shares)
            outside, inside = [above], [below]
        if ceiling < math.inf:
            above, below = significance.tails(differences, ceiling, shares=shares)
            outside, inside = [*outside, below], [*inside, above]
        found = significance.paired_interval(differences, shares=shares)
        return cls(what, *found, floor, ceiling, form, max(outside), min(inside), len(differences))

    @classmethod
    def of_all(cls, findings: Sequence["Finding"]) -> "Finding":
        """That each of several numbers lies in its range, shown by the one that speaks most against it."""
        worst = min(findings, key=lambda finding: (finding.p_differs, -finding.p_agrees))
        p_differs = min(1.0, len(findings) * worst.p_differs)
        return dataclasses.replace(worst, p_agrees=max(f.p_agrees for f in findings), p_differs=p_differs)

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

    @property
    def outside(self) -> bool:
        """Whether the value, for what it is worth, lies outside the range."""
        return not self.floor <= self.value <= self.ceiling

    def items_needed(self, tests: int = 1) -> float:
        """How many items would decide (see `significance.items_that_decide`); infinity where none would."""
        beyond = [limit for limit in (self.floor - self.value, self.value - self.ceiling) if math.isfinite(limit)]
        if not math.isfinite(self.value) or not self.items:
            return math.inf
        # it lies beyond one limit; to lie within, it has to be told from each
        distances = [max(beyond)] if self.outside else [-limit for limit in beyond]
        return significance.items_that_decide(self.items, (self.high - self.low) / (2 * Z), distances, tests)

    def _shown(self, value: float) -> str:
        if math.isnan(value):
            return "no number"
        return "beyond the last cut" if math.isinf(value) else self.form.format(value)


@dataclass(frozen=True)
class Ruling:
    """The verdict on one claim, or on one part of it, for one model and one task, text or table."""

    about: str
    findings: list[Finding] = field(default_factory=list)
    obstacle: Obstacle | None = None  # nothing is decided, whatever the findings are
    missing: Obstacle | None = None  # a part without a number: it may differ, but not agree
    of_paper: bool = True  # about what the paper measured; else a task of our own
    topic: str = ""  # the task's name alone
    tokens: int = 0  # on which the models that it is about were healed
    corrected: float | None = None  # p after Holm's correction
    tests: int = 1  # how many that was corrected for

    @property
    def p_agrees(self) -> float:
        """Small where every number lies in its range: all of them have to."""
        return 1.0 if self.missing or not self.findings else max(finding.p_agrees for finding in self.findings)

    @property
    def p_differs(self) -> float:
        """Small where at least one lies outside, corrected for how many there are."""
        return min([1.0, *(len(self.findings) * finding.p_differs for finding in self.findings)])

    @property
    def p(self) -> float:
        """Of the direction that is seen, two-sided, not corrected for other rulings."""
        return min(1.0, 2 * min(self.p_agrees, self.p_differs))

    @property
    def decides(self) -> bool:
        """Whether there is anything to test."""
        return bool(self.findings) and self.obstacle is None

    @property
    def verdict(self) -> str:
        if self.obstacle is not None:
            return self.obstacle.state
        if not self.findings:
            return self.missing.state if self.missing else UNMEASURED
        if (self.p if self.corrected is None else self.corrected) <= significance.ALPHA:
            return AGREES if self.p_agrees < self.p_differs else DIFFERS
        return self.missing.state if self.missing and not any(f.outside for f in self.findings) else OPEN

    @property
    def reason(self) -> str:
        if self.obstacle is not None:
            return self.obstacle.why
        if not self.findings:
            return self.missing.why if self.missing else "nothing was found"
        if self.verdict in (AGREES, DIFFERS):
            if self.verdict == AGREES:
                return f"every number lies where the claim has it, {self.tested}"
            worst = min(self.findings, key=lambda finding: finding.p_differs)
            return f"outside the claim: {worst.what}, {self.tested}"
        if self.verdict != OPEN:
            return f"{self.missing.why}, {self.tested}"
        return f"neither agreement nor difference is sure, {self.tested}; {self.would_decide}"

    @property
    def tested(self) -> str:
        corrected = self.p if self.corrected is None else self.corrected
        after = f", {_p(corrected)} after Holm's correction for {self.tests} tests" if self.tests > 1 else ""
        return f"p {_p(self.p)}{after}"

    @property
    def would_decide(self) -> str:
        """How many items it takes: for one number that lies outside the least, else the most of all numbers."""
        outside = [finding for finding in self.findings if finding.outside]
        sure = significance.ALPHA / 2 / self.tests  # after Holm's correction at its strictest
        asked = outside or [finding for finding in self.findings if finding.p_agrees > sure]
        if any(finding.value in (finding.floor, finding.ceiling) for finding in asked):
            return f"no number of {asked[0].counted} would decide: a number lies exactly on its limit"
        tests = self.tests * (len(self.findings) if outside else 1)
        needed = (min if outside else max)(finding.items_needed(tests) for finding in asked)
        return so_many(needed, max(finding.items for finding in asked), self.topic or self.about, asked[0].counted)


def so_many(needed: float, have: int, about: str, counted: str = "items") -> str:
    """How many items would decide, in words, beside those that there are of a topic."""
    if needed > MANY:
        return f"no number of {counted} would decide"
    if needed <= have:
        return f"of a few more {counted} the outcome hangs on how they fall"
    there = there_are(about) if counted == "items" else math.inf
    fewer = f", and there are {there:,}" if needed > there else ""
    return f"about {_rounded(needed):,} {counted} would decide (power {significance.POWER:.0%}){fewer}"


def corrected(rulings: Iterable[Ruling]) -> list[Ruling]:
    """The same rulings after Holm's correction for all of them that test something."""
    rulings = list(rulings)
    testing = [place for place, ruling in enumerate(rulings) if ruling.decides]
    for place, p in zip(testing, significance.holm([rulings[place].p for place in testing]), strict=True):
        rulings[place] = dataclasses.replace(rulings[place], corrected=p, tests=len(testing))
    return rulings


def together(rulings: Iterable[Ruling]) -> str:
    """One verdict of all parts of a claim: one that differs is enough to differ, to agree takes all.

    Else the first of: nothing to lose, not measured, inconclusive.
    """
    found = {ruling.verdict for ruling in rulings} or {UNMEASURED}
    return AGREES if found == {AGREES} else next(s for s in (DIFFERS, NOTHING, UNMEASURED, OPEN) if s in found)


def _p(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.1f}"


def _rounded(number: float) -> int:
    """Two digits, upwards: more would say more than is known."""
    unit = 10 ** max(math.floor(math.log10(number)) - 1, 0)
    return math.ceil(number / unit) * unit
