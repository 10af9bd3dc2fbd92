"""`python -m bench.profile`: where the time of a call goes, step by step."""
