"""From results to text, tables, charts and the document."""
