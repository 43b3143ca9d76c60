"""Shared by all tests: no network, and a job over a fake model in a temporary folder."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
REPOSITORY = Path(__file__).parent.parent
os.environ["PYTHONPATH"] = str(REPOSITORY)  # so that Ray workers find tests.fakes
