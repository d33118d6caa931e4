"""Long runs that make the package's checkpoints: python -m gan_ebm_utils.recipes.NAME."""
