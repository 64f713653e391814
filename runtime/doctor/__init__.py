"""`cleave doctor`: what this machine has, and which engine kinds and attention backends can be used here."""
