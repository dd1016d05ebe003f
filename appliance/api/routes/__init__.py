"""The routes, one module per subject. They read parameters, ask, and shape the answer; they decide nothing else."""
