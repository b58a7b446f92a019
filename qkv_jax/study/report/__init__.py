"""A study as a report: page, tables, sentences, figures, terminal."""
