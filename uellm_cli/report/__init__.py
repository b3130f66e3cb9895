"""What a run led to: one row per request, the figures over all rows, and the ways to show them.

`rows` turns each Result into a LatencyRow, the common input of everything else here, so that a
run directory alone is enough to make its report again. `blame` says why a promise was broken,
`metrics` and `goodput` compute, and `console`, `json_report` and `parquet` show and store.

There is no registry of formats: a summary on a terminal, a document and a table take different
things, and no one picks a format by its name.
"""
