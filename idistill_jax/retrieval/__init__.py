"""Search (exact, ScaNN, BM25), runs in TREC's form, measures and significance."""
