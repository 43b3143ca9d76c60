"""What happens to one shard: sample, score, judge, write. Knows neither Ray nor how many workers there are."""
