"""Side-by-side measurements, run by hand: `python -m tools.benchmarks.<name>`."""
