"""The HTTP server: one model, in the dialects of OpenAI and of text-generation-inference."""
