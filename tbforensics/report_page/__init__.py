"""The page that a reader opens: its words, its template, its style and its one script."""
