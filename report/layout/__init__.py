"""The layout of the report: tables, the matrix, figures and their panels, and the page with its templates."""
