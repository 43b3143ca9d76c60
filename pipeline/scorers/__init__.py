"""Scorers behind one protocol (``base.Scorer``), one file each; ``clip`` alone imports open_clip."""
