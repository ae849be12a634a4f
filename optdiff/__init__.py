"""optdiff: if denoising is gradient descent, which optimizer should take the steps?"""
