"""`cleave compare`: the same tokens through engines and through transformers, and where they part.

In reading order: `trace` (what crosses the cuts), `recorder` (how it is seen), `engine_run` and
`truth` (the two sides), `difference` (how far apart), `variant` (what is compared), `suspects` (which
weights to look at), `report` (the table).
"""
