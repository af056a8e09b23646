"""The layout of the report: tables, figures and their panels, the matrix, and the sections and templates of the page."""
