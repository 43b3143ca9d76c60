"""A run from Python: python docs/open_run.py runs/demo"""

import sys

import duckdb

from jobs import open_run

run = open_run(sys.argv[1])

# Metadata as an Arrow table, a pandas frame or a DuckDB relation; the verdicts are those that hold now.
frame = run.metadata().to_pandas()
print(frame["status"].value_counts().to_string())
kept = duckdb.from_arrow(run.metadata("status = 'accepted'"))
print(kept.aggregate("count(distinct prompt) as prompts, count(*) as images").fetchall())

# Any SQL over metadata, images and failed.
print(run.sql("select steps, guidance_scale, count(*) as images from metadata group by all").to_pylist())

# Pictures, each with its row, one at a time: a run of any size fits.
for picture, row in run.images("status = 'accepted'"):
    print(picture.size, picture.mode, row["seed"], repr(row["prompt"]))
    break
