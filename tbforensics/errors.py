"""Every error that a user may meet. The command line prints them without a traceback.

ForensicsError
├── ParametersError   the parameters file cannot be used; nothing was fetched
├── SourceError       a source cannot be asked, or what it sent cannot be read
├── EvidenceError     a case is missing, changed, incomplete or not what it says it is
│   └── Unseen        its store does not answer: nothing is known of what is in it
└── ReportError       a notebook did not run to its end, or a report cannot be written
"""

from __future__ import annotations

from collections.abc import Iterable


class ForensicsError(Exception):
    """What happened, where, and what to do next.

    `problems` lists every problem found, not only the first; `next_step` is one sentence.
    """

    def __init__(self, what: str, *, next_step: str = "", problems: Iterable[str] = ()) -> None:
        self.what = what
        self.problems = tuple(problems)
        self.next_step = next_step
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.what, *(f"  - {problem}" for problem in self.problems)]
        if self.next_step:
            lines.append(f"  Next: {self.next_step}")
        return "\n".join(lines)


class ParametersError(ForensicsError):
    """The parameters file, or a file that it names, cannot be used."""


class SourceError(ForensicsError):
    """A source cannot be asked, refused, or sent what cannot be read."""


class EvidenceError(ForensicsError):
    """A case is missing, changed, incomplete, locked or made by another version."""


class Unseen(EvidenceError):
    """Evidence is in an object store that does not answer, or refuses: no word about it."""


class ReportError(ForensicsError):
    """A notebook failed part way, or a report cannot be rendered."""
