"""The operator that crosses the cut: its schema, its torch form, and the attention specs that go with it."""
