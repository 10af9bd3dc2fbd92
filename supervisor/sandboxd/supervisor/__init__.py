"""The daemon's supervisor: it admits, schedules, times and answers; it never touches guest code."""
