"""What the data is: configuration, records, tables, seeds, names of files, errors.

Knows nothing of torch, ray or diffusers, so that everything that only reads a dataset starts at once.
"""
