"""How `make bench-gpu` judges and times the kernels, and a study a method of what is asked of a GPU."""
