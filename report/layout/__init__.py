"""How the report looks: others use ``tables``, ``figures``, ``panels``, ``matrix``, ``section``, and ``page`` for the
templates.
"""
