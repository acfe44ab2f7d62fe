"""How each model is fitted and measured, on Lightning."""
