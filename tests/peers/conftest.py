# They import libraries that only their own environments have; compare.py runs them.
collect_ignore_glob = ["train_*.py"]
