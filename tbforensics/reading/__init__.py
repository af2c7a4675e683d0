"""From bytes to rows: replies, log lines, journals, archives, stores. Nothing read here raises.

Pure, but for `logtail` and `tsdbcopies`, which do the I/O of the sources that call them.
"""
