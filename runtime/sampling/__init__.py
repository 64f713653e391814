"""From logits to the next token: penalties, masks, temperature, top-k, top-p, min-p, a seeded draw."""
