"""Where evidence comes from. One file per type of source; only these touch the network.

A source file defines `SOURCE`, an object with what `Source` below asks for. `fetch` is the only
I/O, through the `Client` that it is given; `parse` is pure and replays from `raw/` years later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

import pyarrow as pa

from tbforensics.model import Capture, Incident, Query
from tbforensics.wire import Client, Manners


class Source(Protocol):
    """One type of source.

    about:   one line for `tbforensics sources`.
    options: a frozen dataclass; the keys beside `type`, `url` and `http_config` that an entry
             under `sources` may have, with their defaults.
    needs_url: whether an entry without `url` is an error.
    manners: how patient and how polite to be with it.
    always:  queries asked at every incident, whatever its kind; for coverage and doubts.
    """

    about: str
    options: type
    needs_url: bool
    manners: Manners
    always: tuple[Query, ...]

    def fetch(
        self, queries: Sequence[Query], incident: Incident, options: object, client: Client
    ) -> Iterator[Capture]:
        """Ask everything that this incident needs, plus what every incident needs.

        Never raises for what a server does or a file holds: that is a capture with an `error`.
        """
        ...

    def parse(self, capture: Capture, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        """Rows for the tables of `evidence`, as (table name, rows in that table's schema).

        Pure: the same bytes give the same rows. What cannot be read becomes rows of
        `quarantine`, never an exception.
        """
        ...
