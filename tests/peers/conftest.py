# They import libraries that only their own environments have.
collect_ignore_glob = ["train_*.py", "compare_dsin.py", "encode_with_ray.py"]
