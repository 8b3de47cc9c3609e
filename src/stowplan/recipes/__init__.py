"""Recipes join kernels to plans, one physical problem each."""
