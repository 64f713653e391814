"""`cleave bench`: how fast, and how far from what the machine can do.

In reading order: `counts` (bytes and operations of a step), `limits` (what the machine can do),
`phase` (one measured beside the other), `lockstep` (a batch without a scheduler), `latency`, `kvrun`,
`throughput`; `arrivals`, `client`, `serving` for servers; `tables`, `plot`, `record` for the results.
"""
