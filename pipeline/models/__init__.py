"""Generators behind one protocol (``base.ImageModel``); ``diffusers_model`` alone imports diffusers."""
