"""Upkeep of this repository: training, publishing, results, pages, notebooks and benchmarks; not in the wheel."""
