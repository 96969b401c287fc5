"""One folder a stage, committed whole, on a disk or in a bucket, by one run at a time."""
