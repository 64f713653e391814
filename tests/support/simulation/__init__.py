"""Seeded simulation of everything between a request and an engine.

Real: scheduler, page manager (pool, tables, prefix cache), attention server, step transaction. Fake: the
engine's arithmetic and the storage behind the attention server, whose answers are a function of the token
history that they read through the pages. A wrong page, a wrong position or a lost token shows as a wrong
token.
"""
