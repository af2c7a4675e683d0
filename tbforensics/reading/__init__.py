"""From bytes to rows: replies, log lines, journals, archives and stores. Pure; never raises for what it reads."""
