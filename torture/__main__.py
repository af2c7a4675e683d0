"""Print the fault table and the attack table: `python -m torture [words of a row's name ...]`."""

from __future__ import annotations

import signal
import sys

from torture import attacks, faults
from torture.bench import Bench
from torture.table import NOT, OK, UNTRIED, Counts, lines, outcomes

TABLES = {"FAULTS": faults.rows, "ATTACKS": attacks.rows}


def main(words: list[str]) -> int:
    # Whoever starts this in the background has it, and all that it starts, deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    total, states = Counts(), list[str]()
    with Bench() as bench:
        for title, rows in TABLES.items():
            print(f"\n{title}\n", flush=True)
            wanted = [row for row in rows() if not words or any(w in row.name for w in words)]
            for outcome in outcomes(wanted, bench):
                print(lines(outcome), flush=True)
                total.add(outcome.counts)
                states.append(outcome.state)
    print(
        f"\n{states.count(OK)} ok, {states.count(NOT)} NOT, {states.count(UNTRIED)} n/a; "
        f"{total.kills} kills survived, {total.inputs:,} bad inputs tried, "
        f"{total.replies:,} whole replies, {total.lost or 'no'} bytes of them lost"
    )
    return 1 if NOT in states else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
