"""Every claim of the three documents, put to a fair test.

    python -m benchmarks.claims [--claim=...] [--workers=2]

What was found is a line a unit in `benchmarks/results/claims.jsonl`; a run that
is killed goes on. `docs/results.md` and its pictures are made of that file.
"""
