"""The figures of docs/performance.md, by subject. Each module has `figures(settings)`."""
