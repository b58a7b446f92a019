"""One look for all that is shown: figures, numbers and texts, web pages."""
