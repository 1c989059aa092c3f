"""The denoising policy guided by an augmented-Lagrangian energy (ALGD, arXiv 2602.02924)."""
