"""One file a question; `python -m benchmarks NAME` answers it. Figures compare against something in the same run."""
