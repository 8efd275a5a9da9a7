"""Views of the report: metrics, page, checks and the live view."""
