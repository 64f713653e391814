"""The dialect of text-generation-inference, which is archived: /generate and what belongs to it."""
