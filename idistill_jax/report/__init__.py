"""What came out of a run: one web page and one terminal table, from nothing but the workdir."""
